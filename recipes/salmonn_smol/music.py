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

from modeling_salmonn.data.rows import Row
from recipes.salmonn_smol.arguments import Folder, Jobs, Limit, Seed
from recipes.salmonn_smol.audiofolder import MadeClip, write_audiofolder
from recipes.salmonn_smol.music_phrases import Phrase, compose, load_excerpts
from recipes.salmonn_smol.soundfonts import SOUNDFONTS, Note, Preset, SoundFont, render, require_soundfonts
from recipes.salmonn_smol.tables import read_table
from recipes.salmonn_smol.waveforms import SAMPLING_RATE, fade_out, fit_peak


TABLE = read_table("music")
INSTRUMENTS = TABLE["instruments"]
SPEEDS: dict[str, list[int]] = TABLE["speeds"]
FONT_WEIGHTS: dict[str, float] = TABLE["font_weights"]
MIN_SECONDS, MAX_SECONDS = 5.0, 12.0
RELEASE_SECONDS = 1.0  # for the last note to ring
SCORE_SHARE = 0.45
MIN_NOTES = 4
INSTRUMENT_COUNTS = {1: 0.5, 2: 0.25, 3: 0.25}
LOWEST_PITCH, HIGHEST_PITCH = 33, 100  # that soundfonts have samples for
SCORES_FILE = ".scores.json"


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
        """The clip's row, without the text and what its file tells."""
        phrase = self.phrase
        source = "music21 corpus" if phrase.composer else "composed at random"
        score = "score: public domain or as in music21" if phrase.composer else "score: CC0"
        tags = {
            "instruments": list(self.instruments),
            "tempo_bpm": self.tempo,
            "mode": phrase.mode,
            "key": phrase.key,
            "voices": len(phrase.voices),
        }
        return {
            "kind": "music",
            "source": f"{source} rendered with {self.font.path.name}",
            "licence": f"{score}; soundfont: {self.font.licence}",
            "label_origin": "what was rendered",
            "tags": tags | {"composer": phrase.composer} if phrase.composer else tags,
        }


def render_music(folder: Folder, limit: Limit = 1500, seed: Seed = 0, jobs: Jobs = 1) -> list[Row]:
    """Render scores and phrases with General MIDI soundfonts."""
    require_soundfonts(FONT_WEIGHTS)
    scale = min(1.0, limit / 1000)  # a few clips are made of few scores
    recipe = {"seed": seed, "scale": scale}
    folder.mkdir(parents=True, exist_ok=True)
    scores = load_excerpts(folder / SCORES_FILE, seed, scale)
    names = [f"music/rendered/{seed}_{index:05d}.opus" for index in range(limit)]
    return write_audiofolder(folder, names, partial(make_piece, scores, seed), recipe, jobs)


def make_piece(scores: Sequence[Phrase], seed: int, name: str) -> MadeClip:
    """Plan and render the clip of a name."""
    index = int(Path(name).stem.split("_")[1])
    rng = random.Random(f"{seed}:{index}")
    plan = plan_piece(rng, scores, index)
    text = caption(rng, plan)
    return MadeClip(perform(rng, plan), {"text": text, **plan.row})


def plan_piece(rng: random.Random, scores: Sequence[Phrase], index: int) -> Plan:
    """Choose everything about a clip; its number gives the first instrument, so that all come equally often."""
    first = sorted(INSTRUMENTS)[index % len(INSTRUMENTS)]
    speed = rng.choice(list(SPEEDS))
    tempo, seconds = rng.choice(SPEEDS[speed]), rng.uniform(MIN_SECONDS, MAX_SECONDS - RELEASE_SECONDS)
    beats = seconds * tempo / 60
    phrase = compose(rng, rng.choice((1, 1, 2, 3, 4)), beats)
    if scores and rng.random() < SCORE_SHARE:
        excerpt = rng.choice(scores).first_beats(beats)
        phrase = excerpt if excerpt.note_count >= MIN_NOTES else phrase
    phrase = fit_range(rng, phrase, INSTRUMENTS[first]["middle"])
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
    complete = all(INSTRUMENTS[name].get("freepats", True) for name in instruments)
    weights = {name: weight for name, weight in FONT_WEIGHTS.items() if complete or name != "freepats"}
    return SOUNDFONTS[rng.choices(list(weights), list(weights.values()))[0]]


def caption(rng: random.Random, plan: Plan) -> str:
    """One of the corpus' three sentences, with the instruments, the speed and the mode."""
    *others, last = plan.instruments
    names = f"{', '.join(others)} and {last}" if others else last
    piece = "piece in several voices" if len(plan.phrase.voices) > 1 else "melody"
    speed, mode = plan.speed, plan.phrase.mode
    return rng.choice(
        (
            f"A {speed} {piece} for {names} in {mode}.",
            f"A {speed} {mode} {piece} played on {names}.",
            f"{names[0].upper()}{names[1:]} playing a {speed} {piece} in a {mode} key.",
        )
    )


def perform(rng: random.Random, plan: Plan) -> np.ndarray:
    """Render a clip with velocities, timing and reverberation of its own."""
    loudness, spread = rng.randint(60, 110), rng.randint(2, 14)
    notes = []
    for voice, part in enumerate(plan.phrase.voices):
        channel = voice % len(plan.instruments)
        softer = 0 if voice < len(plan.instruments) else 8  # the voices below the tune
        for start, length, pitch in part:
            velocity = round(rng.gauss(loudness - softer, spread))
            late = abs(rng.gauss(0.0, 0.01))
            notes.append(Note(start + late, length, playable(pitch), min(max(velocity, 30), 127), channel))
    presets = [Preset(0, choose_program(rng, name, plan.font)) for name in plan.instruments]
    audio = render(notes, presets, plan.font, plan.tempo, reverb=rng.choice((0.0, 0.2, 0.4, 0.6, 0.9)))
    audio = audio[: round((plan.seconds + RELEASE_SECONDS) * SAMPLING_RATE)]
    return fit_peak(fade_out(audio, 0.2), rng.uniform(0.4, 0.95))


def playable(pitch: int) -> int:
    """The pitch, moved by octaves into the range that soundfonts have samples for."""
    while pitch < LOWEST_PITCH:
        pitch += 12
    while pitch > HIGHEST_PITCH:
        pitch -= 12
    return pitch


def choose_program(rng: random.Random, name: str, font: SoundFont) -> int:
    """A program of an instrument, mostly the usual one, which alone all soundfonts have."""
    usual, *others = INSTRUMENTS[name]["programs"]
    if not others or font.player == "timidity" or rng.random() < 0.7:
        return usual
    return rng.choice(others)
