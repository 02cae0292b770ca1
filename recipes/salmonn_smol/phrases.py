"""Short pieces of music as notes: composed at random, or cut out of public-domain scores.

- a phrase is a list of voices, the highest first; times are in beats
- composed phrases are scales, arpeggios and melodies, alone or over chords and a bass
- scores are those that music21 brings, without the composers that are kept for testing
"""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rich.progress import track

from modeling_salmonn.data.files import write_bytes


TEST_COMPOSERS = ("trecento", "haydn", "airdsAirs", "mozart", "schoenberg")
SCORE_SHARES = {"ryansMammoth": 280, "bach": 130, "palestrina": 25, "monteverdi": 20, "josquin": 8}
SCORE_SUFFIXES = (".abc", ".mxl", ".krn")
EXCERPTS_PER_SCORE = 3
MAX_VOICES = 4
MIN_NOTES = 6
TONICS = ("C", "C#", "D", "E-", "E", "F", "F#", "G", "A-", "A", "B-", "B")  # as music21 spells them
MAJOR_STEPS, MINOR_STEPS = (0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10)
PROGRESSIONS = ((0, 3, 4, 0), (0, 5, 3, 4), (0, 4, 5, 3), (0, 3, 0, 4), (5, 3, 0, 4), (0, 1, 4, 0), (0, 0, 3, 4))
RHYTHMS = (
    (1.0, 1.0, 1.0, 1.0),
    (1.0, 0.5, 0.5, 1.0, 1.0),
    (0.5,) * 8,
    (1.5, 0.5, 1.0, 1.0),
    (2.0, 1.0, 1.0),
    (0.5, 0.5, 1.0, 0.5, 0.5, 1.0),
    (0.75, 0.25, 1.0, 0.75, 0.25, 1.0),
    (0.25, 0.25, 0.5, 1.0, 0.5, 0.5, 1.0),
)
BEATS_PER_BAR = 4

PhraseNote = tuple[float, float, int]  # start and length in beats, MIDI pitch


@dataclass(frozen=True)
class Phrase:
    """Voices, the highest first, with the key they are in and the composer, if there is one."""

    voices: list[list[PhraseNote]]
    key: str
    mode: str
    composer: str | None = None

    def transposed(self, semitones: int) -> "Phrase":
        """The phrase in another key."""
        voices = [[(start, length, pitch + semitones) for start, length, pitch in voice] for voice in self.voices]
        return Phrase(voices, TONICS[(TONICS.index(self.key) + semitones) % 12], self.mode, self.composer)

    def first_beats(self, beats: float) -> "Phrase":
        """The notes that start within the first beats, cut at their end."""
        voices = [
            [(start, min(length, beats - start), pitch) for start, length, pitch in voice if start < beats]
            for voice in self.voices
        ]
        return Phrase([voice for voice in voices if voice], self.key, self.mode, self.composer)

    @property
    def note_count(self) -> int:
        """The number of notes in all voices."""
        return sum(map(len, self.voices))

    @property
    def middle_pitch(self) -> float:
        """The pitch between the lowest and the highest note."""
        pitches = [pitch for voice in self.voices for _, _, pitch in voice]
        return (min(pitches) + max(pitches)) / 2


def compose(rng: random.Random, voices: int, beats: float) -> Phrase:
    """Compose a phrase.

    Args:
        rng (`random.Random`): Source of chance.
        voices (`int`): 1 for a melody, 2 with a bass, 3 and 4 with chords between them.
        beats (`float`): Length.
    """
    tonic, mode = rng.randrange(12), rng.choice(("major", "minor"))
    scale = Scale(tonic, mode)
    bars = int(-(-beats // BEATS_PER_BAR))
    progression = rng.choice(PROGRESSIONS)
    chords = [progression[bar % len(progression)] for bar in range(bars)]
    chords[-1] = 0  # the key is plainest when the end comes home
    tune = rng.choice((scale_run, arpeggio, melody, melody, melody))
    parts = [tune(rng, scale, chords)]
    if voices >= 2:
        parts.append(bass(rng, scale, chords))
    for inner in range(1, voices - 1):
        parts.insert(inner, chord_voice(rng, scale, chords, inner))
    return Phrase(parts, TONICS[tonic], mode).first_beats(beats)


@dataclass(frozen=True)
class Scale:
    """A scale whose degrees run on over the octaves; degree 0 is the tonic in the middle octave."""

    tonic: int
    mode: str

    def pitch(self, degree: int, chord: int = 0) -> int:
        """The MIDI pitch of a degree; a minor scale raises its seventh in the chord of the fifth degree."""
        octave, step = divmod(degree, 7)
        steps = MAJOR_STEPS if self.mode == "major" else MINOR_STEPS
        raised = self.mode == "minor" and step == 6 and chord == 4
        return 60 + (self.tonic if self.tonic < 7 else self.tonic - 12) + 12 * octave + steps[step] + raised


def bar_rhythm(rng: random.Random, chords: Sequence[int]) -> list[tuple[float, float, int]]:
    """Start, length and chord of each note, one rhythm a bar out of two that alternate."""
    rhythms = rng.sample(RHYTHMS, 2)
    slots = []
    for bar, chord in enumerate(chords):
        start = float(bar * BEATS_PER_BAR)
        for length in rhythms[bar % 2]:
            slots.append((start, length, chord))
            start += length
    return slots


def melody(rng: random.Random, scale: Scale, chords: Sequence[int]) -> list[PhraseNote]:
    """A walk over the scale that meets a note of the chord on each strong beat."""
    notes, degree = [], rng.choice((0, 2, 4, 7))
    for start, length, chord in bar_rhythm(rng, chords):
        degree += rng.choice((-2, -1, -1, 0, 1, 1, 2, rng.choice((-4, 3))))
        degree = min(max(degree, -3), 11)
        if start % 2 == 0:
            degree = min(range(-4, 13), key=lambda d: ((d - chord) % 7 not in (0, 2, 4), abs(d - degree)))
        notes.append((start, length * 0.95, scale.pitch(degree, chord)))
    return notes


def scale_run(rng: random.Random, scale: Scale, chords: Sequence[int]) -> list[PhraseNote]:
    """A scale up and down in even notes."""
    length, top = rng.choice((0.5, 0.5, 1.0)), rng.choice((7, 9, 14))
    cycle = [*range(top), *range(top, 0, -1)]
    count = round(len(chords) * BEATS_PER_BAR / length)
    return [(i * length, length * 0.95, scale.pitch(cycle[i % len(cycle)])) for i in range(count)]


def arpeggio(rng: random.Random, scale: Scale, chords: Sequence[int]) -> list[PhraseNote]:
    """Broken chords in even notes."""
    pattern = rng.choice(((0, 2, 4, 7), (0, 2, 4, 7, 9, 7, 4, 2), (7, 4, 2, 0), (0, 4, 2, 4)))
    length = 0.5
    count = round(len(chords) * BEATS_PER_BAR / length)
    notes = []
    for i in range(count):
        chord = chords[int(i * length) // BEATS_PER_BAR]
        notes.append((i * length, length * 0.95, scale.pitch(chord + pattern[i % len(pattern)], chord)))
    return notes


def bass(rng: random.Random, scale: Scale, chords: Sequence[int]) -> list[PhraseNote]:
    """The root of each chord, low and long, or in turn with its fifth."""
    length = rng.choice((4.0, 2.0, 1.0))
    notes = []
    for i in range(round(len(chords) * BEATS_PER_BAR / length)):
        chord = chords[int(i * length) // BEATS_PER_BAR]
        degree = chord + (4 if i % 2 and length < 4 else 0)
        notes.append((i * length, length * 0.95, scale.pitch(degree - 14, chord)))
    return notes


def chord_voice(rng: random.Random, scale: Scale, chords: Sequence[int], inner: int) -> list[PhraseNote]:
    """An inner voice of held or repeated chord notes: the third, then the fifth."""
    length = rng.choice((4.0, 2.0, 1.0))
    notes = []
    for i in range(round(len(chords) * BEATS_PER_BAR / length)):
        chord = chords[int(i * length) // BEATS_PER_BAR]
        notes.append((i * length, length * 0.95, scale.pitch(chord + 2 * inner - 7, chord)))
    return notes


def cache_excerpts(file: Path, seed: int, scale: float = 1.0) -> None:
    """Cut excerpts out of music21's scores and keep them in a file, unless it is there.

    Args:
        file (`Path`): JSON file of the excerpts.
        seed (`int`): Chooses the scores and the places.
        scale (`float`): Share of the usual number of scores.

    Raises:
        ImportError: If music21 is not installed.
    """
    if file.exists():
        return
    phrases: list[Phrase] = []
    for composer, path in track(choose_works(seed, scale), description="Scores"):
        phrases += excerpts(random.Random(f"{seed}:{path.name}"), path, composer)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, json.dumps([asdict(phrase) for phrase in phrases]).encode())


@cache
def cached_excerpts(file: Path) -> list[Phrase]:
    """The excerpts of a file, read once a process.

    Raises:
        ValueError: If the file is damaged.
    """
    try:
        return [Phrase(**fields) for fields in json.loads(file.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} has no excerpts that can be read ({error}); delete it to make it anew.") from error


def choose_works(seed: int, scale: float) -> list[tuple[str, Path]]:
    """Composer and file of the scores to read."""
    try:
        import music21
    except ImportError as error:
        raise ImportError("Reading scores needs music21; install it: pip install music21") from error
    works = []
    for composer, count in SCORE_SHARES.items():
        folder = Path(music21.__file__).parent / "corpus" / composer
        paths = sorted(path for path in folder.rglob("*") if path.suffix in SCORE_SUFFIXES)
        count = min(len(paths), round(count * scale))
        works += [(composer, path) for path in random.Random(f"{seed}:{composer}").sample(paths, count)]
    return works


def excerpts(rng: random.Random, path: Path, composer: str) -> list[Phrase]:
    """Excerpts of one score; none if it cannot be read as voices in one key."""
    from music21 import converter

    try:
        score = converter.parse(path)
        key: Any = score.analyze("key")
    except Exception:  # music21 fails in many ways on odd files, and a score more or less is no loss
        return []
    parts = list(getattr(score, "parts", ()))[:MAX_VOICES]
    voices = [voice for part in parts if (voice := part_notes(part))]
    if not voices or key.mode not in ("major", "minor") or key.tonic.name not in TONICS:
        return []
    voices.sort(key=lambda voice: -sum(pitch for _, _, pitch in voice) / len(voice))
    found = [cut(rng, voices, Phrase([], key.tonic.name, key.mode, composer)) for _ in range(EXCERPTS_PER_SCORE)]
    return [phrase for phrase in found if phrase is not None]


def part_notes(part: Any) -> list[PhraseNote]:
    """The notes of a music21 part, the top one of each chord."""
    notes = []
    for element in part.flatten().notes:
        pitches = [pitch.midi for pitch in getattr(element, "pitches", ())]
        if pitches and element.quarterLength:
            notes.append((float(element.offset), float(element.quarterLength), max(pitches)))
    return notes


def cut(rng: random.Random, voices: list[list[PhraseNote]], key: Phrase, beats: float = 32.0) -> Phrase | None:
    """Some beats from a random bar on, in all voices or in the highest alone; `None` if too few notes are there."""
    last = max(start for voice in voices for start, _, _ in voice)
    begin = float(BEATS_PER_BAR * rng.randint(0, max(0, int((last - beats / 2) // BEATS_PER_BAR))))
    chosen = voices[:1] if rng.random() < 0.4 else voices
    moved = [[(s - begin, length, p) for s, length, p in voice if begin <= s < begin + beats] for voice in chosen]
    moved = [voice for voice in moved if voice]
    if sum(map(len, moved)) < MIN_NOTES:
        return None
    rest = min(voice[0][0] for voice in moved)
    moved = [[(start - rest, length, pitch) for start, length, pitch in voice] for voice in moved]
    return Phrase(moved, key.key, key.mode, key.composer)
