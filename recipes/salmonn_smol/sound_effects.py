"""Sound effects, bells, drums and single instruments of soundfonts, played with variations."""

import random
from dataclasses import dataclass

import numpy as np

from recipes.salmonn_smol.soundfonts import SOUNDFONTS, Note, Preset, render
from recipes.salmonn_smol.tables import read_table
from recipes.salmonn_smol.waveforms import SAMPLING_RATE, fade_out, trim_silence


RELEASE_SECONDS = 1.5  # for the last note to ring
FIRST_EFFECT_PROGRAM = 120  # of General MIDI: what follows are noises, not instruments
NOT_MELODIC = ("clock or ticking", "telephone or beep", "click")


@dataclass(frozen=True)
class Effect:
    """A sound of soundfonts.

    Args:
        sound_class (`str`, *optional*): One of the corpus' classes.
        phrase (`str`): Names the sound.
        bank (`int`), program (`int`): The preset.
        fonts (`tuple[str, ...]`): Soundfonts that have it.
        pitches (`tuple[int, int]`): Lowest and highest MIDI pitch to play.
        seconds (`tuple[float, float]`): Shortest and longest note.
        counts (`tuple[int, int]`): Fewest and most notes.
        gap_seconds (`tuple[float, float]`): Shortest and longest time between the ends and the starts of notes.
    """

    sound_class: str | None
    phrase: str
    bank: int
    program: int
    fonts: tuple[str, ...]
    pitches: tuple[int, int] = (54, 66)
    seconds: tuple[float, float] = (2.0, 5.0)
    counts: tuple[int, int] = (1, 1)
    gap_seconds: tuple[float, float] = (0.05, 0.6)


def _read_effects() -> list[Effect]:
    table = read_table("sound_effects")
    effects = []
    for sound_class, phrase, bank, program, fonts, *ranges in table["effects"]:
        effects.append(Effect(sound_class, phrase, bank, program, tuple(table["fonts"][fonts]), *ranges))
    return effects


EFFECTS = _read_effects()


def play_effect(effect: Effect, font: str, rng: random.Random) -> np.ndarray:
    """Play an effect once, with pitches, velocities, lengths and pauses of its own."""
    notes, start = [], 0.0
    base = rng.randint(*effect.pitches)
    length, gap = rng.uniform(*effect.seconds), rng.uniform(*effect.gap_seconds)
    for pitch in pitches(rng, effect, base, rng.randint(*effect.counts)):
        notes.append(Note(start, length, pitch, rng.randint(70, 127)))
        start += length + gap
    preset = Preset(effect.bank, effect.program)
    audio = render(notes, [preset], SOUNDFONTS[font], reverb=rng.choice((0.0, 0.2, 0.5)))
    audio = trim_silence(audio[: round((start + RELEASE_SECONDS) * SAMPLING_RATE)])
    return fade_out(audio, 0.2)


def pitches(rng: random.Random, effect: Effect, base: int, count: int) -> list[int]:
    """Pitches of the notes: free for drums and plucked or blown notes, the same for a sound effect."""
    if effect.program >= FIRST_EFFECT_PROGRAM or effect.sound_class in NOT_MELODIC:
        return [base] * count
    return [rng.randint(*effect.pitches) for _ in range(count)]
