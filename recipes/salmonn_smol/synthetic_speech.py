"""Synthetic English speech of a broad vocabulary, to teach a small model to recognise words.

- Three free synthesisers (flite, espeak-ng, festival) and a dozen voices speak the texts of `synthetic_texts`.
- Rate, pitch, speed and loudness vary from clip to clip; silence around the words is cut to a tenth of a second.
- Everything about clip n follows from the seed and n alone, so a run can be interrupted, continued or extended.
"""

import logging
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import soundfile
import soxr
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from modeling_salmonn.data.files import Journal, replaced_whole, write_rows
from recipes.salmonn_smol.audiofolder import keep_recipe
from recipes.salmonn_smol.synthetic_texts import WORDNET, Text, planned_texts


logger = logging.getLogger(__name__)

SAMPLE_RATE = 16_000
LONGEST_SECONDS = 14.0
SHORTEST_SECONDS = 0.25
SILENCE_SECONDS = 0.1  # what is left before and after the words
FRAME = 160  # samples in the 10 ms over which silence is judged
QUIET = 0.01  # of the loudest frame, -40 dB
OPUS_COMPRESSION = 0.8  # about 58 kbit/s; below 50 kbit/s libsndfile's encoder takes three times as long
BATCH = 64  # clips of one task; festival starts once for each
CLIPS_PER_METADATA = 2_000
FIRST_TEXTS = 3  # by which a folder knows what texts it was made of
TIMEOUT_SECONDS = 600
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
VOICES = (
    Voice("flite", "slt", "f", 26),
    Voice("flite", "rms", "m", 24),
    Voice("festival", "ked", "m", 14),
    Voice("festival", "slt-hts", "f", 8),
    Voice("flite", "kal16", "m", 6),
    Voice("festival", "kal", "m", 5),
    Voice("flite", "kal", "m", 2),  # 8 kHz, like a telephone
    *(
        Voice("espeak-ng", f"{accent}+{variant}", variant[0], 15 / 24)
        for accent in ("en-us", "en-gb")
        for variant in ("f1", "f2", "f3", "f4", "f5", "m1", "m2", "m3", "m4", "m5", "m6", "m7")
    ),
)


@dataclass(frozen=True)
class Clip:
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

    def row(self, seconds: float) -> dict[str, Any]:
        """Describe the finished clip as a line of `metadata.jsonl`."""
        return {
            "file_name": self.file_name,
            "kind": "speech",
            "text": self.text.words,
            "seconds": round(seconds, 3),
            "source": "synthetic",
            "voice": self.voice.label,
            "gender": self.voice.gender,
            "licence": self.text.licence,
            "label_origin": "text given to the synthesiser",
            "text_source": self.text.source,
        }


def plan_clips(clips: int, seed: int = 0, wordnet: Path = WORDNET) -> list[Clip]:
    """Decide text, voice and variation of the first clips.

    Args:
        clips (`int`): Number of clips.
        seed (`int`): Seed; the same seed gives the same clips, and a larger number only adds to them.
        wordnet (`Path`): Folder of the WordNet database.
    """
    return [_plan_clip(index, text, seed) for index, text in enumerate(islice(planned_texts(seed, wordnet), clips))]


def _plan_clip(index: int, text: Text, seed: int) -> Clip:
    """Choose voice and variation of one clip."""
    random = Random(f"{seed} clip {index}")
    return Clip(
        index=index,
        text=text,
        voice=random.choices(VOICES, [voice.share for voice in VOICES])[0],
        stretch=round(random.uniform(0.85, 1.2), 3),
        pitch=round(random.uniform(-1, 1), 3),
        speed=round(random.uniform(0.88, 1.14), 3),
        peak=round(0.15 * (0.9 / 0.15) ** random.random(), 3),  # even in decibels
    )


def flite_command(clip: Clip, path: Path) -> list[str]:
    """Say a clip with flite; only its kal voices let their pitch be set in hertz."""
    command = ["flite", "-voice", clip.voice.name, "--setf", f"duration_stretch={clip.stretch}"]
    if clip.voice.name.startswith("kal"):
        command += ["--setf", f"int_f0_target_mean={105 + 25 * clip.pitch:.1f}"]
    return [*command, "-t", clip.text.words, "-o", str(path)]


def espeak_command(clip: Clip, path: Path) -> list[str]:
    """Say a clip with espeak-ng, whose speed is in words a minute and pitch from 0 to 99."""
    rate, pitch = round(160 / clip.stretch), round(50 + 20 * clip.pitch)
    return ["espeak-ng", "-v", clip.voice.name, "-s", str(rate), "-p", str(pitch), "-w", str(path), clip.text.words]


def festival_script(clips: Sequence[Clip], folder: Path) -> str:
    """Write the Scheme commands that say clips with festival."""
    return "\n".join(command for clip in clips for command in _festival_commands(clip, folder / f"{clip.index}.wav"))


def _festival_commands(clip: Clip, path: Path) -> Iterator[str]:
    """Set a voice, its rate and pitch, and say one clip; the statistical voice takes its rate as an option."""
    yield f"(voice_{FESTIVAL_NAMES[clip.voice.name]})"
    if clip.voice.name == "slt-hts":
        yield f"""(set! hts_engine_params (append hts_engine_params '(("-r" {1 / clip.stretch:.3f}))))"""
    else:
        mean = f"(target_f0_mean {105 + 20 * clip.pitch:.1f})"
        yield f"(Parameter.set 'Duration_Stretch {clip.stretch})"
        yield f"(set! int_lr_params '({mean} (target_f0_std 14) (model_f0_mean 170) (model_f0_std 34)))"
    yield f'(utt.save.wave (utt.synth (Utterance Text "{clip.text.words}")) "{path}" \'riff)'


def _synthesise_batch(clips: Sequence[Clip], folder: Path) -> None:
    """Say clips into `folder/INDEX.wav`; a clip that fails has no file."""
    single_commands = {"flite": flite_command, "espeak-ng": espeak_command}
    for clip in clips:
        path = folder / f"{clip.index}.wav"
        if clip.voice.engine in single_commands and not _run(single_commands[clip.voice.engine](clip, path)):
            path.unlink(missing_ok=True)
    if remaining := [clip for clip in clips if clip.voice.engine == "festival"]:
        script = folder / "script.scm"
        script.write_text(festival_script(remaining, folder))
        _run(["festival", "--batch", str(script)])


def _run(command: list[str]) -> bool:
    """Run a synthesiser, safe from a Ctrl-C that would cut its audio short, and tell whether it succeeded."""
    with suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            command,
            check=False,
            timeout=TIMEOUT_SECONDS,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            start_new_session=True,
        )
        return done.returncode == 0
    return False


def finish_audio(audio: np.ndarray, rate: int, clip: Clip) -> np.ndarray:
    """Resample a synthesised clip at its speed, trim its silence and set its loudness.

    Args:
        audio (`np.ndarray` of shape `(samples,)`): What the synthesiser gave.
        rate (`int`): Its sampling rate in hertz.
        clip (`Clip`): The clip's variation.

    Returns:
        `np.ndarray`: Audio at 16 kHz, empty if there was only silence.
    """
    audio = trim_silence(soxr.resample(audio, rate * clip.speed, SAMPLE_RATE))
    largest = np.abs(audio).max(initial=0.0)
    return audio * (clip.peak / largest) if largest else audio[:0]


def trim_silence(audio: np.ndarray) -> np.ndarray:
    """Cut silence before and after the words to a tenth of a second."""
    frames = audio[: len(audio) // FRAME * FRAME].reshape(-1, FRAME)
    levels = np.sqrt((frames**2).mean(axis=1))
    loud = np.flatnonzero(levels > QUIET * levels.max(initial=0.0))
    if not len(loud):
        return audio[:0]
    margin = int(SILENCE_SECONDS * SAMPLE_RATE)
    return audio[max(0, loud[0] * FRAME - margin) : (loud[-1] + 1) * FRAME + margin]


def _make_batch(clips: Sequence[Clip], folder: Path) -> dict[int, float]:
    """Make the files of some clips.

    Returns:
        `dict[int, float]`: The seconds of each clip made, by its index; clips too short or too long are left out.
    """
    seconds: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        _synthesise_batch(clips, Path(temporary))
        for clip in clips:
            wave = Path(temporary, f"{clip.index}.wav")
            if not wave.is_file() or wave.stat().st_size < 100:
                continue
            audio, rate = soundfile.read(wave, dtype="float32")
            audio = finish_audio(audio, rate, clip)
            if SHORTEST_SECONDS <= len(audio) / SAMPLE_RATE <= LONGEST_SECONDS:
                _write_whole(audio, folder / clip.file_name)
                seconds[clip.index] = len(audio) / SAMPLE_RATE
    return seconds


def _write_whole(audio: np.ndarray, path: Path) -> None:
    """Write a clip so that an interruption leaves no half of it under its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_whole(path) as unfinished:
        soundfile.write(
            unfinished, audio, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=OPUS_COMPRESSION
        )


def write_metadata(folder: Path, clips: Sequence[Clip], seconds: dict[int, float]) -> None:
    """Replace `metadata.jsonl` by the rows of the clips that exist."""
    write_rows(folder / "metadata.jsonl", (clip.row(seconds[clip.index]) for clip in clips if clip.index in seconds))


def require_synthesisers(wordnet: Path = WORDNET) -> None:
    """Check that all programs, voices and data are installed.

    Raises:
        OSError: if one is missing, with the command that installs it.
    """
    missing = [program for program in ("flite", "espeak-ng") if not shutil.which(program)]
    if not shutil.which("festival") or not all(
        any(FESTIVAL_VOICES.glob(f"*/{name}")) for name in FESTIVAL_NAMES.values()
    ):
        missing.append("festival")
    if not (wordnet / "data.noun").is_file():
        missing.append("wordnet")
    if missing:
        packages = " ".join(DEBIAN_PACKAGES[name] for name in missing)
        raise OSError(f"Missing {', '.join(missing)}; install with: apt-get install {packages}")


def _finished_seconds(folder: Path, clips: Sequence[Clip]) -> dict[int, float]:
    """Give the seconds of the clips that an earlier run has made, measuring only those it has not listed."""
    existing = {f"{path.parent.name}/{path.name}" for path in folder.glob("clips/*/*.opus")}
    metadata = Journal(folder / "metadata.jsonl", ("file_name",), {"file_name": str, "seconds": (int, float)})
    listed = {row["file_name"]: float(row["seconds"]) for row in metadata.rows}
    made = (clip for clip in clips if clip.file_name.removeprefix("clips/") in existing)
    return {
        clip.index: listed.get(clip.file_name) or soundfile.info(folder / clip.file_name).duration for clip in made
    }


def synthesise_speech(folder: Path, clips: int = 45000, seed: int = 0, jobs: int = 1) -> None:
    """Make an audiofolder of synthetic speech, or continue one.

    Args:
        folder (`Path`): Where `metadata.jsonl` and `clips/` go.
        clips (`int`): Number of clips; 45,000 are about 32 hours.
        seed (`int`): Seed of texts, voices and variations.
        jobs (`int`): Clips made at the same time.

    Raises:
        OSError: if a synthesiser or WordNet is missing.
        ValueError: if a number is below one, or the folder was made with another seed.
    """
    if clips < 1 or jobs < 1:
        raise ValueError(f"Found clips={clips} and jobs={jobs}; both must be 1 or more.")
    require_synthesisers()
    planned = plan_clips(max(clips, FIRST_TEXTS), seed)
    plan = planned[:clips]
    folder.mkdir(parents=True, exist_ok=True)
    keep_recipe(folder, {"seed": seed, "first_texts": [clip.text.words for clip in planned[:FIRST_TEXTS]]})
    seconds = _finished_seconds(folder, plan)
    try:
        _make_missing(folder, plan, seconds, jobs)
    finally:
        write_metadata(folder, plan, seconds)
    if len(seconds) < len(plan):
        logger.warning("%d clips were left out: silent, too short or too long.", len(plan) - len(seconds))


def _make_missing(folder: Path, plan: Sequence[Clip], seconds: dict[int, float], jobs: int) -> None:
    """Make the clips without seconds, under a progress bar, and note their seconds."""
    missing = [clip for clip in plan if clip.index not in seconds]
    batches = [missing[start : start + BATCH] for start in range(0, len(missing), BATCH)]
    written = len(seconds)
    columns = (TextColumn("speech"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress, ThreadPoolExecutor(jobs) as pool:
        bar = progress.add_task("speech", total=len(plan), completed=len(seconds))
        futures = [pool.submit(_make_batch, batch, folder) for batch in batches]
        try:
            for future in as_completed(futures):
                seconds.update(future.result())
                progress.update(bar, completed=len(seconds))
                if len(seconds) - written >= CLIPS_PER_METADATA:
                    write_metadata(folder, plan, seconds)
                    written = len(seconds)
                    logger.info("%d of %d clips are listed in metadata.jsonl.", written, len(plan))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


__all__ = ["synthesise_speech"]
