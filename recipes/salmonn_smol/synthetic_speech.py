"""Synthetic English speech of a broad vocabulary, to teach a small model to recognise words.

- Three free synthesisers (flite, espeak-ng, festival) and a dozen voices speak the texts of `spoken_texts`.
- Rate, pitch, speed and loudness vary from clip to clip; silence around the words is cut to a tenth of a second.
- Everything about clip n follows from the seed and n alone, so a run can be interrupted, continued or extended.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import soundfile
import soxr

from modeling_salmonn.data.rows import Row
from recipes.salmonn_smol.arguments import Folder, Jobs, Limit, Seed
from recipes.salmonn_smol.audiofolder import MadeClip, write_audiofolder
from recipes.salmonn_smol.spoken_texts import WORDNET, Text, planned_texts
from recipes.salmonn_smol.waveforms import SAMPLING_RATE, trim_to_words


LONGEST_SECONDS = 14.0
SHORTEST_SECONDS = 0.25
OPUS_COMPRESSION = 0.8  # about 58 kbit/s; below 50 kbit/s libsndfile's encoder takes three times as long
FIRST_TEXTS = 3  # by which a folder knows what texts it was made of
TIMEOUT_SECONDS = 600
EMPTY_WAVE_BYTES = 100  # a header without sound
DEBIAN_PACKAGES = {
    "flite": "flite",
    "espeak-ng": "espeak-ng",
    "festival": "festival festvox-kdlpc16k festvox-kallpc16k festvox-us-slt-hts",
    "wordnet": "wordnet-base",
}
FESTIVAL_VOICES = Path("/usr/share/festival/voices")
FESTIVAL_NAMES = {"ked": "ked_diphone", "kal": "kal_diphone", "slt-hts": "cmu_us_slt_arctic_hts"}


@dataclass(frozen=True)
class Voice:
    """A voice of a synthesiser, with its share of the clips in percent."""

    engine: str
    name: str
    gender: str
    share: float

    @property
    def label(self) -> str:
        return f"{self.engine}-{self.name}"


# Never add the awb voice of flite and festival, nor Piper's joe: models are scored on them.
VOICES = [
    Voice("flite", "slt", "f", 26),
    Voice("flite", "rms", "m", 24),
    Voice("festival", "ked", "m", 14),
    Voice("festival", "slt-hts", "f", 8),
    Voice("flite", "kal16", "m", 6),
    Voice("festival", "kal", "m", 5),
    Voice("flite", "kal", "m", 2),  # 8 kHz, like a telephone
]
ESPEAK_VARIANTS = ("f1", "f2", "f3", "f4", "f5", "m1", "m2", "m3", "m4", "m5", "m6", "m7")
for accent in ("en-us", "en-gb"):
    VOICES += [Voice("espeak-ng", f"{accent}+{variant}", variant[0], 15 / 24) for variant in ESPEAK_VARIANTS]


@dataclass(frozen=True)
class Utterance:
    """What clip `index` says and how.

    Args:
        stretch (`float`): Duration that the synthesiser gives the sounds, 1 being the voice's own.
        pitch (`float`): From -1 (low) to 1 (high), for voices whose pitch can be set.
        speed (`float`): Factor of playing faster, which raises the pitch as well.
        peak (`float`): Largest absolute sample of the finished clip.
    """

    index: int
    text: Text
    voice: Voice
    stretch: float
    pitch: float
    speed: float
    peak: float

    @property
    def file_name(self) -> str:
        return f"clips/{self.index // 1000:02d}/{self.index:06d}.opus"

    @property
    def row(self) -> Row:
        """The clip's row, without what its file tells."""
        return {
            "kind": "speech",
            "text": self.text.words,
            "source": "synthetic",
            "voice": self.voice.label,
            "gender": self.voice.gender,
            "licence": self.text.licence,
            "label_origin": "text given to the synthesiser",
            "text_source": self.text.source,
        }


def plan_utterances(limit: int, seed: int = 0, wordnet: Path = WORDNET) -> list[Utterance]:
    """Decide text, voice and variation of the first clips.

    Args:
        limit (`int`): Number of clips.
        seed (`int`): Seed; the same seed gives the same clips, and a larger number only adds to them.
        wordnet (`Path`): Folder of the WordNet database.
    """
    texts = islice(planned_texts(seed, wordnet), limit)
    return [_plan_utterance(index, text, seed) for index, text in enumerate(texts)]


def _plan_utterance(index: int, text: Text, seed: int) -> Utterance:
    """Choose voice and variation of one clip."""
    random = Random(f"{seed} clip {index}")
    return Utterance(
        index=index,
        text=text,
        voice=random.choices(VOICES, [voice.share for voice in VOICES])[0],
        stretch=round(random.uniform(0.85, 1.2), 3),
        pitch=round(random.uniform(-1, 1), 3),
        speed=round(random.uniform(0.88, 1.14), 3),
        peak=round(0.15 * (0.9 / 0.15) ** random.random(), 3),  # even in decibels
    )


def flite_command(utterance: Utterance, path: Path) -> list[str]:
    """Say a text with flite; only its kal voices let their pitch be set in hertz."""
    name = utterance.voice.name
    command = ["flite", "-voice", name, "--setf", f"duration_stretch={utterance.stretch}"]
    if name.startswith("kal"):
        command += ["--setf", f"int_f0_target_mean={105 + 25 * utterance.pitch:.1f}"]
    return [*command, "-t", utterance.text.words, "-o", str(path)]


def espeak_command(utterance: Utterance, path: Path) -> list[str]:
    """Say a text with espeak-ng, whose speed is in words a minute and pitch from 0 to 99."""
    rate, pitch = round(160 / utterance.stretch), round(50 + 20 * utterance.pitch)
    settings = ["-v", utterance.voice.name, "-s", str(rate), "-p", str(pitch)]
    return ["espeak-ng", *settings, "-w", str(path), utterance.text.words]


def festival_command(utterance: Utterance, path: Path) -> list[str]:
    """Say a text with festival, in Scheme; the statistical voice takes its rate as an option."""
    name = utterance.voice.name
    if name == "slt-hts":
        rate = f'("-r" {1 / utterance.stretch:.3f})'
        settings = [f"(set! hts_engine_params (append hts_engine_params '({rate})))"]
    else:
        mean = f"(target_f0_mean {105 + 20 * utterance.pitch:.1f})"
        settings = [
            f"(Parameter.set 'Duration_Stretch {utterance.stretch})",
            f"(set! int_lr_params '({mean} (target_f0_std 14) (model_f0_mean 170) (model_f0_std 34)))",
        ]
    said = f'(utt.save.wave (utt.synth (Utterance Text "{utterance.text.words}")) "{path}" \'riff)'
    return ["festival", "--batch", f"(voice_{FESTIVAL_NAMES[name]})", *settings, said]


COMMANDS: dict[str, Callable[[Utterance, Path], list[str]]] = {
    "flite": flite_command,
    "espeak-ng": espeak_command,
    "festival": festival_command,
}


def speak(utterances: Mapping[str, Utterance], name: str) -> MadeClip | None:
    """Make the clip of a name; `None` if it is silent, too short or too long, or the synthesiser failed."""
    utterance = utterances[name]
    with tempfile.TemporaryDirectory() as folder:
        wave = Path(folder, "speech.wav")
        if not _run(COMMANDS[utterance.voice.engine](utterance, wave)):
            return None
        if not wave.is_file() or wave.stat().st_size < EMPTY_WAVE_BYTES:
            return None
        audio, rate = soundfile.read(wave, dtype="float32")
    audio = finish_audio(audio, rate, utterance)
    if not SHORTEST_SECONDS <= len(audio) / SAMPLING_RATE <= LONGEST_SECONDS:
        return None
    return MadeClip(audio, utterance.row)


def _run(command: list[str]) -> bool:
    """Run a synthesiser, safe from a Ctrl-C that would cut its audio short, and tell whether it succeeded."""
    try:
        done = subprocess.run(
            command,
            check=False,
            timeout=TIMEOUT_SECONDS,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def finish_audio(audio: np.ndarray, rate: int, utterance: Utterance) -> np.ndarray:
    """Resample a synthesised clip at its speed, trim its silence and set its loudness.

    Args:
        audio (`np.ndarray` of shape `(samples,)`): What the synthesiser gave.
        rate (`int`): Its sampling rate in hertz.
        utterance (`Utterance`): The clip's variation.

    Returns:
        `np.ndarray`: Audio at 16 kHz, empty if there was only silence.
    """
    audio = trim_to_words(soxr.resample(audio, rate * utterance.speed, SAMPLING_RATE))
    largest = np.abs(audio).max(initial=0.0)
    return audio * (utterance.peak / largest) if largest else audio[:0]


def require_synthesisers(wordnet: Path = WORDNET) -> None:
    """Check that all programs, voices and data are installed.

    Raises:
        OSError: if one is missing, with the command that installs it.
    """
    missing = [program for program in ("flite", "espeak-ng") if not shutil.which(program)]
    voices = {path.name for path in FESTIVAL_VOICES.glob("*/*")}
    if not shutil.which("festival") or not voices.issuperset(FESTIVAL_NAMES.values()):
        missing.append("festival")
    if not (wordnet / "data.noun").is_file():
        missing.append("wordnet")
    if missing:
        packages = " ".join(DEBIAN_PACKAGES[name] for name in missing)
        raise OSError(f"Missing {', '.join(missing)}; install with: apt-get install {packages}")


def synthesise_speech(folder: Folder, limit: Limit = 24436, seed: Seed = 0, jobs: Jobs = 1) -> list[Row]:
    """Make synthetic English speech with flite, espeak-ng and festival."""
    require_synthesisers()
    planned = plan_utterances(max(limit, FIRST_TEXTS), seed)
    recipe = {"seed": seed, "first_texts": [utterance.text.words for utterance in planned[:FIRST_TEXTS]]}
    utterances = {utterance.file_name: utterance for utterance in planned[:limit]}
    encoding = {"compression_level": OPUS_COMPRESSION}
    return write_audiofolder(folder, list(utterances), partial(speak, utterances), recipe, jobs, encoding)
