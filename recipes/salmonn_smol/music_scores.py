"""Music clips with captions that state what was rendered.

- the captions, speeds and tags are those of the corpus' music rows
- every instrument comes first equally often, so that none is rare
- soundfonts differ from clip to clip, and often within one: a listener must not learn one soundfont
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from recipes.salmonn_smol.audiofolder import (
    SAMPLING_RATE,
    Clip,
    Row,
    fade_out,
    fit_peak,
    keep_recipe,
    write_audiofolder,
)
from recipes.salmonn_smol.phrases import Phrase, cache_excerpts, cached_excerpts, compose
from recipes.salmonn_smol.soundfonts import SOUNDFONTS, Note, Preset, SoundFont, render, require_soundfonts


SPEEDS = {"slow": (50, 60), "moderate": (72, 90, 108), "fast": (126, 150, 176)}  # quarter notes a minute
MIN_SECONDS, MAX_SECONDS = 5.0, 12.0
RELEASE_SECONDS = 1.0  # for the last note to ring
SCORE_SHARE = 0.45
MIN_NOTES = 4
INSTRUMENT_COUNTS = {1: 0.5, 2: 0.25, 3: 0.25}
SCORES_FILE = ".scores.json"
# How often each soundfont is taken; the corpus has plenty of FluidR3 already.
FONT_WEIGHTS = {
    "TimGM6mb": 0.27,
    "sf_GMbank": 0.23,
    "FluidR3_GM": 0.16,
    "FluidR3Mono_GM": 0.14,
    "freepats": 0.12,
    "OPL-3_FM": 0.08,
}


@dataclass(frozen=True)
class Instrument:
    """General MIDI programs, the usual one first, and the middle of the range (MIDI pitch)."""

    programs: tuple[int, ...]
    middle: int
    freepats: bool = True  # whether the GUS patches have the usual program


INSTRUMENTS = {
    "accordion": Instrument((21,), 67),
    "acoustic guitar": Instrument((24, 25), 57),
    "bagpipes": Instrument((109,), 69, freepats=False),
    "banjo": Instrument((105,), 62, freepats=False),
    "cello": Instrument((42,), 52),
    "choir": Instrument((52, 53), 64, freepats=False),
    "church organ": Instrument((19,), 62),
    "clarinet": Instrument((71,), 67),
    "distorted electric guitar": Instrument((30, 29), 55),
    "flute": Instrument((73,), 76),
    "french horn": Instrument((60,), 57),
    "harp": Instrument((46,), 64),
    "harpsichord": Instrument((6,), 64),
    "marimba": Instrument((12,), 64, freepats=False),
    "music box": Instrument((10,), 76, freepats=False),
    "oboe": Instrument((68,), 72),
    "piano": Instrument((0, 1), 64),
    "recorder": Instrument((74,), 76),
    "saxophone": Instrument((65, 66, 64, 67), 62),
    "string ensemble": Instrument((48, 49), 62),
    "synthesizer lead": Instrument((80, 81), 67),
    "trombone": Instrument((57,), 52),
    "trumpet": Instrument((56,), 69),
    "vibraphone": Instrument((11,), 67, freepats=False),
    "violin": Instrument((40,), 74),
}


@dataclass(frozen=True)
class Plan:
    """What a clip is to be."""

    instruments: tuple[str, ...]
    phrase: Phrase
    speed: str
    tempo: int
    seconds: float
    font: SoundFont

    @property
    def row(self) -> Row:
        """The clip's row, without the name and the length of its file."""
        source = "music21 corpus" if self.phrase.composer else "composed at random"
        score = "score: public domain or as in music21" if self.phrase.composer else "score: CC0"
        tags = {
            "instruments": list(self.instruments),
            "tempo_bpm": self.tempo,
            "mode": self.phrase.mode,
            "key": self.phrase.key,
            "voices": len(self.phrase.voices),
            "composer": self.phrase.composer,
        }
        return {
            "kind": "music",
            "source": f"{source} rendered with {self.font.path.name}",
            "licence": f"{score}; soundfont: {self.font.licence}",
            "label_origin": "what was rendered",
            "tags": {key: value for key, value in tags.items() if value is not None},
        }


def render_music(folder: Path, clips: int = 3000, seed: int = 0, jobs: int = 1) -> list[Row]:
    """Make an audio folder of music clips, or what it lacks.

    Args:
        folder (`Path`): The audio folder.
        clips (`int`): How many clips.
        seed (`int`): The same seed gives the same clips.
        jobs (`int`): Processes.

    Returns:
        `list[dict]`: The rows of `metadata.jsonl`.

    Raises:
        FileNotFoundError: If a soundfont or a player is missing; the message names the packages.
    """
    require_soundfonts(FONT_WEIGHTS)
    scale = min(1.0, clips / 1000)  # a few clips are made of few scores
    recipe = {"seed": seed, "scale": scale}
    folder.mkdir(parents=True, exist_ok=True)
    keep_recipe(folder, recipe)
    cache_excerpts(folder / SCORES_FILE, seed, scale)
    names = [f"music/rendered/{seed}_{index:05d}.opus" for index in range(clips)]
    make = partial(make_clip, folder / SCORES_FILE, seed)
    return write_audiofolder(folder, names, make, recipe, jobs, title="Music")


def make_clip(scores_file: Path, seed: int, name: str) -> Clip:
    """Plan and render the clip of a name."""
    index = int(Path(name).stem.split("_")[1])
    rng = random.Random(f"{seed}:{index}")
    clip = plan(rng, cached_excerpts(scores_file), index)
    text = caption(rng, clip)
    return Clip(perform(rng, clip), {"text": text, **clip.row})


def plan(rng: random.Random, scores: Sequence[Phrase], index: int) -> Plan:
    """Choose everything about a clip; its number gives the first instrument, so that all come equally often."""
    first = sorted(INSTRUMENTS)[index % len(INSTRUMENTS)]
    speed = rng.choice(list(SPEEDS))
    tempo, seconds = rng.choice(SPEEDS[speed]), rng.uniform(MIN_SECONDS, MAX_SECONDS - RELEASE_SECONDS)
    beats = seconds * tempo / 60
    phrase = compose(rng, rng.choice((1, 1, 2, 3, 4)), beats)
    if scores and rng.random() < SCORE_SHARE:
        excerpt = rng.choice(scores).first_beats(beats)
        phrase = excerpt if excerpt.note_count >= MIN_NOTES else phrase
    phrase = fit_range(rng, phrase, INSTRUMENTS[first].middle)
    count = min(len(phrase.voices), rng.choices(list(INSTRUMENT_COUNTS), list(INSTRUMENT_COUNTS.values()))[0])
    others = rng.sample(sorted(set(INSTRUMENTS) - {first}), count - 1)
    instruments = (first, *others)
    return Plan(instruments, phrase, speed, tempo, seconds, choose_font(rng, instruments))


def fit_range(rng: random.Random, phrase: Phrase, middle: int) -> Phrase:
    """Transpose a phrase by some semitones, and in half of the cases by octaves towards the instrument's range.

    The other half stays where it was written, as all music of the corpus does.
    """
    shift = rng.randint(-5, 6)
    if rng.random() < 0.5:
        shift += 12 * round((middle - phrase.middle_pitch - shift) / 12)
    return phrase.transposed(shift)


def choose_font(rng: random.Random, instruments: Sequence[str]) -> SoundFont:
    """A soundfont that has all the instruments."""
    complete = all(INSTRUMENTS[name].freepats for name in instruments)
    weights = {name: weight for name, weight in FONT_WEIGHTS.items() if complete or name != "freepats"}
    return SOUNDFONTS[rng.choices(list(weights), list(weights.values()))[0]]


def caption(rng: random.Random, clip: Plan) -> str:
    """One of the corpus' three sentences, with the instruments, the speed and the mode."""
    *others, last = clip.instruments
    names = f"{', '.join(others)} and {last}" if others else last
    piece = "piece in several voices" if len(clip.phrase.voices) > 1 else "melody"
    speed, mode = clip.speed, clip.phrase.mode
    return rng.choice(
        (
            f"A {speed} {piece} for {names} in {mode}.",
            f"A {speed} {mode} {piece} played on {names}.",
            f"{names[0].upper()}{names[1:]} playing a {speed} {piece} in a {mode} key.",
        )
    )


def perform(rng: random.Random, clip: Plan) -> np.ndarray:
    """Render a clip with velocities, timing and reverberation of its own."""
    loudness, spread = rng.randint(60, 110), rng.randint(2, 14)
    notes = []
    for voice, part in enumerate(clip.phrase.voices):
        channel = voice % len(clip.instruments)
        softer = 0 if voice < len(clip.instruments) else 8  # the voices below the tune
        for start, length, pitch in part:
            velocity = round(rng.gauss(loudness - softer, spread))
            late = abs(rng.gauss(0.0, 0.01))
            notes.append(Note(start + late, length, playable(pitch), min(max(velocity, 30), 127), channel))
    presets = [Preset(0, choose_program(rng, name, clip.font)) for name in clip.instruments]
    audio = render(notes, presets, clip.font, clip.tempo, reverb=rng.choice((0.0, 0.2, 0.4, 0.6, 0.9)))
    audio = audio[: round((clip.seconds + RELEASE_SECONDS) * SAMPLING_RATE)]
    return fit_peak(fade_out(audio, 0.2), rng.uniform(0.4, 0.95))


def playable(pitch: int) -> int:
    """The pitch, moved by octaves into the range that soundfonts have samples for."""
    while pitch < 33:
        pitch += 12
    while pitch > 100:
        pitch -= 12
    return pitch


def choose_program(rng: random.Random, name: str, font: SoundFont) -> int:
    """A program of an instrument, mostly the usual one, which alone all soundfonts have."""
    programs = INSTRUMENTS[name].programs
    if len(programs) == 1 or font.player == "timidity" or rng.random() < 0.7:
        return programs[0]
    return rng.choice(programs[1:])
