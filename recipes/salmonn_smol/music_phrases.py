"""Short pieces of music as notes: composed at random, or cut out of public-domain scores.

- a phrase is a list of voices, the highest first; times are in beats
- composed phrases are scales, arpeggios and melodies, alone or over chords and a bass
- scores are those that music21 brings, without the composers that are kept for testing
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.progress import track

from modeling_salmonn.data.files import write_json
from recipes.salmonn_smol.tables import read_table


TABLE = read_table("music")
TONICS: list[str] = TABLE["tonics"]
SCORE_SUFFIXES = (".abc", ".mxl", ".krn")
EXCERPTS_PER_SCORE = 3
EXCERPT_BEATS = 32.0
MAX_VOICES = 4
MIN_NOTES = 6
BEATS_PER_BAR = 4
LEGATO = 0.95  # of its time that a note sounds
MIDDLE_C = 60

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
        voices = []
        for voice in self.voices:
            notes = [(start, min(length, beats - start), pitch) for start, length, pitch in voice if start < beats]
            if notes:
                voices.append(notes)
        return Phrase(voices, self.key, self.mode, self.composer)

    @property
    def note_count(self) -> int:
        """The number of notes in all voices."""
        return sum(map(len, self.voices))

    @property
    def middle_pitch(self) -> float:
        """The pitch between the lowest and the highest note."""
        pitches = [pitch for voice in self.voices for _, _, pitch in voice]
        return (min(pitches) + max(pitches)) / 2


@dataclass(frozen=True)
class Scale:
    """A scale whose degrees run on over the octaves; degree 0 is the tonic in the middle octave."""

    tonic: int
    mode: str

    def pitch(self, degree: int, chord: int = 0) -> int:
        """The MIDI pitch of a degree; a minor scale raises its seventh in the chord of the fifth degree."""
        octave, step = divmod(degree, 7)
        raised = self.mode == "minor" and step == 6 and chord == 4
        tonic = self.tonic if self.tonic < 7 else self.tonic - 12
        return MIDDLE_C + tonic + 12 * octave + TABLE["steps"][self.mode][step] + raised


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
    progression = rng.choice(TABLE["progressions"])
    chords = [progression[bar % len(progression)] for bar in range(bars)]
    chords[-1] = 0  # the key is plainest when the end comes home
    tune = rng.choice((scale_run, arpeggio, melody, melody, melody))
    parts = [tune(rng, scale, chords)]
    if voices >= 2:
        parts.append(bass(rng, scale, chords))
    for inner in range(1, voices - 1):
        parts.insert(inner, chord_voice(rng, scale, chords, inner))
    return Phrase(parts, TONICS[tonic], mode).first_beats(beats)


def bar_rhythm(rng: random.Random, chords: Sequence[int]) -> list[tuple[float, float, int]]:
    """Start, length and chord of each note, one rhythm a bar out of two that alternate."""
    rhythms = rng.sample(TABLE["rhythms"], 2)
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
            near = [d for d in range(-4, 13) if (d - chord) % 7 in (0, 2, 4)]
            degree = min(near, key=lambda d: abs(d - degree))
        notes.append((start, length * LEGATO, scale.pitch(degree, chord)))
    return notes


def scale_run(rng: random.Random, scale: Scale, chords: Sequence[int]) -> list[PhraseNote]:
    """A scale up and down in even notes."""
    length, top = rng.choice((0.5, 0.5, 1.0)), rng.choice((7, 9, 14))
    cycle = [*range(top), *range(top, 0, -1)]
    count = round(len(chords) * BEATS_PER_BAR / length)
    return [(i * length, length * LEGATO, scale.pitch(cycle[i % len(cycle)])) for i in range(count)]


def even_notes(
    scale: Scale, chords: Sequence[int], length: float, degree: Callable[[int, int], int]
) -> list[PhraseNote]:
    """Notes of one length; `degree` gives the degree of a note by its number and the root of its chord."""
    notes = []
    for i in range(round(len(chords) * BEATS_PER_BAR / length)):
        chord = chords[int(i * length) // BEATS_PER_BAR]
        notes.append((i * length, length * LEGATO, scale.pitch(degree(i, chord), chord)))
    return notes


def arpeggio(rng: random.Random, scale: Scale, chords: Sequence[int]) -> list[PhraseNote]:
    """Broken chords."""
    pattern = rng.choice(((0, 2, 4, 7), (0, 2, 4, 7, 9, 7, 4, 2), (7, 4, 2, 0), (0, 4, 2, 4)))
    return even_notes(scale, chords, 0.5, lambda i, chord: chord + pattern[i % len(pattern)])


def bass(rng: random.Random, scale: Scale, chords: Sequence[int]) -> list[PhraseNote]:
    """The root of each chord, low and long, or in turn with its fifth."""
    length = rng.choice((4.0, 2.0, 1.0))
    fifth = 4 if length < BEATS_PER_BAR else 0
    return even_notes(scale, chords, length, lambda i, chord: chord - 14 + fifth * (i % 2))


def chord_voice(rng: random.Random, scale: Scale, chords: Sequence[int], inner: int) -> list[PhraseNote]:
    """An inner voice of held or repeated chord notes: the third, then the fifth."""
    length = rng.choice((4.0, 2.0, 1.0))
    return even_notes(scale, chords, length, lambda i, chord: chord - 7 + 2 * inner)


def load_excerpts(file: Path, seed: int, scale: float = 1.0) -> list[Phrase]:
    """Excerpts of music21's scores, which are kept in a file.

    Args:
        file (`Path`): JSON file of the excerpts; made if it is not there.
        seed (`int`): Chooses the scores and the places.
        scale (`float`): Share of the usual number of scores.

    Raises:
        ImportError: If music21 is not installed.
        ValueError: If the file is damaged.
    """
    if not file.exists():
        phrases: list[Phrase] = []
        for composer, path in track(choose_works(seed, scale), description="Scores"):
            phrases += excerpts(random.Random(f"{seed}:{path.name}"), path, composer)
        write_json(file, [asdict(phrase) for phrase in phrases])
    try:
        return [Phrase(**fields) for fields in json.loads(file.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} has no excerpts that can be read ({error}); delete it to make it anew.") from error


def choose_works(seed: int, scale: float) -> list[tuple[str, Path]]:
    """Composer and file of the scores to read."""
    import music21

    works = []
    for composer, count in TABLE["scores"].items():
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
    voices = [part_notes(part) for part in list(getattr(score, "parts", ()))[:MAX_VOICES]]
    voices = [voice for voice in voices if voice]
    if not voices or key.mode not in ("major", "minor") or key.tonic.name not in TONICS:
        return []
    voices.sort(key=lambda voice: -sum(pitch for _, _, pitch in voice) / len(voice))
    found = []
    for _ in range(EXCERPTS_PER_SCORE):
        cut = cut_voices(rng, voices)
        if sum(map(len, cut)) >= MIN_NOTES:
            found.append(Phrase(cut, key.tonic.name, key.mode, composer))
    return found


def part_notes(part: Any) -> list[PhraseNote]:
    """The notes of a music21 part, the top one of each chord."""
    notes = []
    for element in part.flatten().notes:
        pitches = [pitch.midi for pitch in getattr(element, "pitches", ())]
        if pitches and element.quarterLength:
            notes.append((float(element.offset), float(element.quarterLength), max(pitches)))
    return notes


def cut_voices(rng: random.Random, voices: list[list[PhraseNote]]) -> list[list[PhraseNote]]:
    """Some beats from a random bar on, in all voices or in the highest alone; the first note comes at once."""
    last = max(start for voice in voices for start, _, _ in voice)
    begin = float(BEATS_PER_BAR * rng.randint(0, max(0, int((last - EXCERPT_BEATS / 2) // BEATS_PER_BAR))))
    end = begin + EXCERPT_BEATS
    chosen = voices[:1] if rng.random() < 0.4 else voices
    cut = [[note for note in voice if begin <= note[0] < end] for voice in chosen]
    cut = [voice for voice in cut if voice]
    first = min((voice[0][0] for voice in cut), default=begin)
    return [[(start - first, length, pitch) for start, length, pitch in voice] for voice in cut]
