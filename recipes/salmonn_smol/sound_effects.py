"""Sound effects, bells, drums and single instruments of soundfonts: which preset, how it is played, what it is.

Presets are those of General MIDI and, in the variation banks, of Roland GS.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recipes.salmonn_smol.audiofolder import SAMPLING_RATE, fade_out, trim_silence
from recipes.salmonn_smol.soundfonts import DRUM_BANK, SOUNDFONTS, Note, Preset, render


BOTH_FLUID = ("FluidR3_GM", "FluidR3Mono_GM")
GM_FONTS = (*BOTH_FLUID, "TimGM6mb", "sf_GMbank")
GS_FONTS = ("FluidR3_GS", "sf_GMbank")
ALL_FONTS = (*GM_FONTS, "OPL-3_FM", "freepats")
PATCH_EFFECTS = (*GM_FONTS, "freepats")


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


STEADY, CLOSE = (0.0, 0.0), (0.0, 0.25)  # pauses between notes

EFFECTS: tuple[Effect, ...] = (
    Effect("dog or wolf", "a dog barking", 1, 123, GS_FONTS, (52, 68), (0.5, 1.2), (1, 4)),
    Effect("horse", "a horse galloping", 2, 123, GS_FONTS, (54, 68), (2.0, 5.0)),
    Effect("bird", "a bird tweeting", 0, 123, GM_FONTS, (50, 72), (0.6, 2.5), (1, 3)),
    Effect("bird", "a bird singing", 3, 123, GS_FONTS, (52, 70), (0.6, 2.5), (1, 3)),
    Effect("rain", "rain falling", 1, 122, GS_FONTS, (50, 70), (2.5, 6.0)),
    Effect("thunder", "thunder", 2, 122, GS_FONTS, (48, 68), (2.0, 5.0), (1, 2)),
    Effect("wind", "wind blowing", 3, 122, GS_FONTS, (48, 72), (3.0, 6.0)),
    Effect("water", "water: a stream flowing", 4, 122, GS_FONTS, (52, 70), (2.5, 6.0)),
    Effect("water", "water bubbling", 5, 122, GS_FONTS, (52, 70), (1.5, 4.0)),
    Effect("water", "water: waves at the sea shore", 0, 122, PATCH_EFFECTS, (52, 66), (4.0, 7.0)),
    Effect("telephone or beep", "a telephone ringing", 0, 124, GM_FONTS, (54, 68), (1.0, 3.0), (1, 2)),
    Effect("telephone or beep", "a telephone ringing", 1, 124, GS_FONTS, (54, 68), (1.0, 3.0), (1, 2)),
    Effect("telephone or beep", "an electronic beep", 8, 80, BOTH_FLUID, (72, 96), (0.06, 0.5), (1, 5), (0.05, 0.5)),
    Effect("telephone or beep", "an electronic beep", 0, 80, GM_FONTS, (76, 96), (0.06, 0.4), (1, 5), (0.05, 0.5)),
    Effect("door", "the creak of a door", 2, 124, GS_FONTS, (52, 68), (1.0, 3.0)),
    Effect("door", "a door slamming", 3, 124, GS_FONTS, (52, 68), (0.6, 1.5), (1, 2)),
    Effect("helicopter", "a helicopter flying", 0, 125, PATCH_EFFECTS, (50, 68), (3.0, 6.0)),
    Effect("motor vehicle", "the engine of a motor vehicle", 1, 125, GS_FONTS, (46, 72), (2.0, 5.0)),
    Effect("motor vehicle", "a motor vehicle braking: a car stops", 2, 125, GS_FONTS, (52, 68), (2.0, 4.0)),
    Effect("motor vehicle", "a motor vehicle passing: a car", 3, 125, GS_FONTS, (50, 70), (2.5, 5.0)),
    Effect("motor vehicle", "the crash of a motor vehicle: a car", 4, 125, GS_FONTS, (52, 68), (2.0, 4.0)),
    Effect("siren or alarm", "the siren of an emergency vehicle", 5, 125, GS_FONTS, (52, 68), (2.0, 5.0)),
    Effect("train", "a train passing on its rails", 6, 125, GS_FONTS, (44, 72), (2.5, 6.0)),
    Effect("airplane", "an airplane: a jet plane passing", 7, 125, GS_FONTS, (50, 70), (3.0, 6.0)),
    Effect(None, "a starship flying past", 8, 125, GS_FONTS, (52, 68), (2.5, 5.0)),
    Effect("applause or crowd", "a crowd giving applause", 0, 126, GM_FONTS, (54, 68), (2.5, 6.0)),
    Effect("laughter", "laughter: a person laughing", 1, 126, GS_FONTS, (52, 70), (1.2, 3.0)),
    Effect("scream or pain", "a person's scream", 2, 126, GS_FONTS, (52, 70), (1.0, 2.5)),
    Effect(None, "a punch", 3, 126, GS_FONTS, (52, 68), (0.4, 0.8), (1, 3)),
    Effect(None, "a heart beating", 4, 126, GS_FONTS, (54, 66), (0.8, 1.2), (2, 5)),
    Effect("footsteps", "footsteps", 5, 126, GS_FONTS, (50, 70), (0.5, 1.0), (2, 6), CLOSE),
    Effect("gunshot", "a gunshot", 0, 127, GM_FONTS, (50, 70), (0.6, 1.5), (1, 4)),
    Effect("gunshot", "gunshot after gunshot: a machine gun", 1, 127, GS_FONTS, (52, 70), (1.0, 2.5)),
    Effect("laser or energy weapon", "a laser gun firing", 2, 127, GS_FONTS, (48, 72), (0.5, 1.2), (1, 4)),
    Effect("explosion", "an explosion", 3, 127, GS_FONTS, (46, 70), (2.0, 4.0)),
    Effect("click", "the click of a key on an instrument", 1, 121, GS_FONTS, (52, 72), (0.2, 0.5), (1, 4)),
    Effect("click", "a click", DRUM_BANK, 0, GM_FONTS, (31, 33), (0.1, 0.3), (1, 4)),
    Effect(
        "clock or ticking", "a clock: steady ticking", DRUM_BANK, 0, GM_FONTS, (33, 33), (0.5, 0.5), (4, 10), STEADY
    ),
    Effect(
        "clock or ticking", "the ticking of a clock", DRUM_BANK, 0, GM_FONTS, (76, 77), (0.5, 0.5), (4, 10), STEADY
    ),
    Effect("bell", "a bell: wind chimes ringing", 5, 124, GS_FONTS, (54, 68), (2.0, 4.0)),
    Effect("bell", "a bell ringing", 0, 14, ALL_FONTS, (48, 76), (0.8, 3.0), (1, 4), CLOSE),
    Effect("bell", "a church bell ringing", 8, 14, (*BOTH_FLUID, "sf_GMbank"), (45, 70), (1.5, 3.5), (1, 4), CLOSE),
    Effect("bell", "a small bell ringing", 0, 112, (*GM_FONTS, "OPL-3_FM"), (60, 84), (0.5, 1.5), (1, 5), CLOSE),
    Effect("guitar", "a guitar being plucked", 0, 24, ALL_FONTS, (42, 72), (0.3, 1.5), (1, 6), CLOSE),
    Effect("guitar", "a steel-string guitar being plucked", 0, 25, ALL_FONTS, (42, 72), (0.3, 1.5), (1, 6), CLOSE),
    Effect("guitar", "an electric guitar", 0, 27, ALL_FONTS, (42, 72), (0.3, 1.5), (1, 6), CLOSE),
    Effect("guitar", "a distorted electric guitar", 0, 30, ALL_FONTS, (40, 67), (0.4, 2.0), (1, 4), CLOSE),
    Effect("guitar", "a bass guitar", 0, 33, ALL_FONTS, (28, 50), (0.3, 1.5), (1, 6), CLOSE),
    Effect("drum", "a big drum beating", 0, 116, (*GM_FONTS, "OPL-3_FM"), (40, 64), (0.3, 0.8), (2, 8), (0.0, 0.4)),
    Effect("drum", "a drum: toms being beaten", 0, 117, (*GM_FONTS, "OPL-3_FM"), (45, 69), (0.2, 0.6), (2, 10), CLOSE),
    Effect("drum", "a kettle drum", 0, 47, ALL_FONTS, (40, 57), (0.4, 1.2), (2, 8), CLOSE),
    Effect("drum", "a drum kit", DRUM_BANK, 0, ALL_FONTS, (35, 50), (0.15, 0.4), (4, 14), CLOSE),
    Effect("drum", "a drum kit", DRUM_BANK, 16, GM_FONTS, (35, 50), (0.15, 0.4), (4, 14), CLOSE),
    Effect("tuba", "a tuba note", 0, 58, ALL_FONTS, (29, 60), (0.5, 3.0)),
    Effect("horn", "a horn blowing", 0, 60, ALL_FONTS, (48, 67), (0.6, 2.5), (1, 3), (0.05, 0.3)),
    Effect(
        "horn", "a signal on brass horns: one horn call", 0, 61, ALL_FONTS, (50, 67), (0.4, 2.0), (1, 3), (0.05, 0.3)
    ),
)


def play_effect(rng: random.Random, effect: Effect, font: str) -> np.ndarray:
    """Play an effect once, with pitches, velocities, lengths and pauses of its own."""
    notes, start = [], 0.0
    base = rng.randint(*effect.pitches)
    length, gap = rng.uniform(*effect.seconds), rng.uniform(*effect.gap_seconds)
    for pitch in pitches(rng, effect, base, rng.randint(*effect.counts)):
        notes.append(Note(start, length, pitch, rng.randint(70, 127)))
        start += length + gap
    audio = render(notes, [Preset(effect.bank, effect.program)], SOUNDFONTS[font], reverb=rng.choice((0.0, 0.2, 0.5)))
    audio = trim_silence(audio[: round((start + 1.5) * SAMPLING_RATE)])
    return fade_out(audio, 0.2)


def pitches(rng: random.Random, effect: Effect, base: int, count: int) -> Sequence[int]:
    """Pitches of the notes: free for drums and plucked or blown notes, almost the same for a sound effect."""
    if effect.program >= 120 or effect.sound_class in ("clock or ticking", "telephone or beep", "click"):
        return [base] * count
    return [rng.randint(*effect.pitches) for _ in range(count)]
