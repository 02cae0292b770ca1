"""Speech of a small neural voice, each clip by a speaker of its own.

The voice of `hibari-tts` (Apache-2.0; distilled from a voice of Kokoro-82M) gives the spectrum of the vocal tract, the
noise and the pitch of each frame apart. Moving the formants and the pitch before they become sound makes women, men
and children of it; the pace, the melody and the tilt of the spectrum do the rest.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import soxr
import typer

from modeling_salmonn.data.rows import Row
from modeling_salmonn.data.tables import read_manifest
from recipes.salmonn_smol.arguments import Folder, Jobs, Seed
from recipes.salmonn_smol.audiofolder import MadeClip, digest_texts, read_audiofolders, write_audiofolder
from recipes.salmonn_smol.recordings import noise_rows, record_elsewhere
from recipes.salmonn_smol.transcripts import as_sentence, spoken_words
from recipes.salmonn_smol.waveforms import SAMPLING_RATE


LONGEST_SECONDS = 18.0
VOICED_HERTZ = 40  # frames below have no pitch
BRITISH_SHARE = 0.25
# Mean and deviation of pitch and formants relative to the voice, which is a woman's.
MALE = {"pitch": (0.58, 0.08), "formants": (0.87, 0.035)}
FEMALE = {"pitch": (1.0, 0.13), "formants": (1.02, 0.05)}
LOWEST_PITCH, FORMANTS = 0.4, (0.78, 1.18)
MELODY, TILT = (0.6, 1.5), (-2.5, 1.0)  # range of the pitch; natural logarithm at the highest frequency
PACE, PACES = (1.05, 0.14), (0.75, 1.4)


@dataclass(frozen=True)
class Speaker:
    """How a speaker differs from the voice: factors of pitch, formants, melody and pace, and the tilt."""

    pitch: float
    formants: float
    melody: float
    tilt: float
    pace: float
    british: bool

    @classmethod
    def draw(cls, rng: random.Random) -> "Speaker":
        """Someone new."""
        kind = MALE if rng.random() < 0.5 else FEMALE
        return cls(
            pitch=max(LOWEST_PITCH, rng.gauss(*kind["pitch"])),
            formants=float(np.clip(rng.gauss(*kind["formants"]), *FORMANTS)),
            melody=rng.uniform(*MELODY),
            tilt=rng.uniform(*TILT),
            pace=float(np.clip(rng.gauss(*PACE), *PACES)),
            british=rng.random() < BRITISH_SHARE,
        )


class NeuralVoice:
    """The voice of `hibari-tts`, changed to that of a speaker.

    Raises:
        ValueError: if the package is not installed.
    """

    def __init__(self) -> None:
        try:
            from hibari import Hibari, dsp
            from hibari.g2p import G2P
        except ModuleNotFoundError as error:
            raise ValueError(f"There is no {error.name}, which reads texts aloud; pip install hibari-tts.") from error

        self.synthesise: Any = dsp.synth
        self.sampling_rate: int = Hibari.sample_rate
        self.american = Hibari()
        self.british = Hibari(g2p=G2P(british=True))  # the same voice by other rules of pronunciation

    def speak(self, text: str, speaker: Speaker, seed: int) -> np.ndarray:
        """Samples `(samples,)` at 16 kHz of a text; none if nothing of it can be said."""
        voice = self.british if speaker.british else self.american
        rng = np.random.default_rng(seed)
        parts = [self._speak_part(voice, phonemes, speaker, rng) for phonemes in voice.phonemize(text)]
        if not parts:
            return np.zeros(0, np.float32)
        return soxr.resample(np.concatenate(parts), self.sampling_rate, SAMPLING_RATE)

    def _speak_part(self, voice: Any, phonemes: str, speaker: Speaker, rng: np.random.Generator) -> np.ndarray:
        inputs = {
            "ids": np.asarray([voice.ids(phonemes)], np.int64),
            "speed": np.asarray([speaker.pace], np.float32),
        }
        # log spectra (bins, frames) of the harmonics, of the noise in them and of noise alone; phases; pitch in Hz
        harmonic, phase, noise, free, offset, pitch = (part[0] for part in voice.sess.run(None, inputs))
        tilt = np.linspace(0, speaker.tilt, len(harmonic), dtype=np.float32)[:, None]
        spectra = [move_formants(part, speaker.formants) + tilt for part in (harmonic, noise, free)]
        pitch = change_pitch(pitch, speaker).astype(np.float32)
        return self.synthesise(spectra[0], phase, spectra[1], spectra[2], offset, pitch, rng)


class NeuralSpeechMaker:
    """Makes the clip of a name such as `000017.flac`; the name alone decides who speaks and how it is recorded.

    Args:
        texts: what is said, by the place in the names.
        noises: rows of recorded noises, from `noise_rows`.
        seed: of all choices.
    """

    def __init__(self, texts: Sequence[str], noises: Sequence[Row] = (), seed: int = 0):
        self.texts = texts
        self.noises = noises
        self.seed = seed

    @cached_property
    def voice(self) -> NeuralVoice:
        """Loaded when the first clip is made."""
        return NeuralVoice()

    def names(self) -> list[str]:
        """Names of all clips."""
        return [f"{index // 1000:03d}/{index:06d}.flac" for index in range(len(self.texts))]

    def __call__(self, name: str) -> MadeClip | None:
        text = self.texts[int(Path(name).stem)]
        rng = random.Random(f"{self.seed}/{name}")
        speaker = Speaker.draw(rng)
        samples = self.voice.speak(as_sentence(text), speaker, rng.getrandbits(32))
        if not 0 < len(samples) <= LONGEST_SECONDS * SAMPLING_RATE:
            return None
        row = {"kind": "speech", "text": text, "source": "neural", "manner": asdict(speaker)}
        row |= {"licence": "Apache-2.0", "label_origin": "text that was read"}
        return MadeClip(record_elsewhere(samples, self.noises, rng), row)


def move_formants(spectrum: np.ndarray, factor: float) -> np.ndarray:
    """Log spectra `(bins, frames)` whose bin `k` is bin `k / factor` of what was given."""
    bins = np.arange(len(spectrum)) / factor
    below = np.minimum(bins.astype(int), len(spectrum) - 2)
    share = np.clip(bins - below, 0, 1).astype(np.float32)[:, None]
    return spectrum[below] * (1 - share) + spectrum[below + 1] * share


def change_pitch(pitch: np.ndarray, speaker: Speaker) -> np.ndarray:
    """Pitch in Hz `(frames,)` at the speaker's height, with a wider or narrower melody around its middle."""
    voiced = pitch > VOICED_HERTZ
    if not voiced.any():
        return pitch
    middle = np.exp(np.log(pitch[voiced]).mean())
    changed = middle * speaker.pitch * (np.maximum(pitch, 1) / middle) ** speaker.melody
    return np.where(voiced, changed, pitch)


def read_texts(file: Path) -> list[str]:
    """The texts of a manifest that can be read aloud: those without figures."""
    return [row["text"] for row in read_manifest(file) if spoken_words(row["text"])]


def make_neural_speech(
    texts: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="JSON lines with `text`.")],
    folder: Folder,
    noises: Annotated[
        list[Path] | None, typer.Option(exists=True, file_okay=False, help="Audio folder with sounds for noise.")
    ] = None,
    seed: Seed = 0,
    jobs: Jobs = 1,
) -> list[Row]:
    """Let a neural voice read texts, each by another speaker in another room."""
    said = read_texts(texts)
    behind = noise_rows(read_audiofolders(noises or ()))
    maker = NeuralSpeechMaker(said, behind, seed)
    recipe = {"seed": seed, "texts": digest_texts(said), "noises": digest_texts([row["path"] for row in behind])}
    return write_audiofolder(folder, maker.names(), maker, recipe, jobs)
