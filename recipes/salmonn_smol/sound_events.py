"""Sound events with captions.

- sources: the sounds of Debian packages, and the sound effects, bells, drums and instruments of soundfonts
- each class gets about as many clips: a source is varied more often where a class has few of them
- a variant has another speed, tone, loudness and section; a soundfont's effect also other pitches and lengths
"""

import hashlib
import io
import random
from collections import defaultdict
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import soundfile
import soxr

from recipes.salmonn_smol.audiofolder import (
    SAMPLING_RATE,
    Clip,
    Row,
    fade_out,
    fit_peak,
    tilt,
    trim_silence,
    write_audiofolder,
)
from recipes.salmonn_smol.captions import describe
from recipes.salmonn_smol.sound_effects import EFFECTS, Effect, play_effect
from recipes.salmonn_smol.sound_packages import fetch_all, find_rule, original_name
from recipes.salmonn_smol.sound_rules import SOUND_PACKAGES
from recipes.salmonn_smol.soundfonts import SOUNDFONTS, require_soundfonts


CLIPS_PER_CLASS = 54
MAX_VARIANTS_FILE, MAX_VARIANTS_EFFECT = 10, 14
UNCLASSED_VARIANTS = 2
MIN_SECONDS, MAX_SECONDS = 0.3, 8.0
REPEATED_SECONDS = 0.8  # shorter sounds are heard up to three times
SPEEDS = (0.88, 1.14)
PEAKS = (0.25, 0.95)


@dataclass(frozen=True)
class Source:
    """Where clips come from: a file of a package, or an effect of a soundfont."""

    name: str
    sound_class: str | None
    phrase: str
    path: Path | None = None
    effect: Effect | None = None
    font: str = ""

    @property
    def row(self) -> Row:
        """The fields of a clip's row that do not change from variant to variant."""
        if self.path is not None:
            package = self.path.parent.name
            row = {"source": package, "licence": SOUND_PACKAGES[package].licence, "label_origin": "file name"}
        else:
            font = SOUNDFONTS[self.font]
            row = {"source": font.package, "licence": font.licence, "label_origin": "what was rendered"}
        return {"kind": "event", **row, **({"sound_class": self.sound_class} if self.sound_class else {})}


def collect_sounds(
    folder: Path, seed: int = 0, jobs: int = 1, packages: Path | None = None, per_class: int = CLIPS_PER_CLASS
) -> list[Row]:
    """Make an audio folder of sound events, or what it lacks.

    Args:
        folder (`Path`): The audio folder.
        seed (`int`): The same seed gives the same clips.
        jobs (`int`): Processes.
        packages (`Path`, *optional*): Where the sounds of packages are kept; `packages` beside the folder by default.
        per_class (`int`): About how many clips a class gets.

    Returns:
        `list[dict]`: The rows of `metadata.jsonl`.

    Raises:
        FileNotFoundError: If a soundfont, a player or a package is missing; the message names it.
    """
    require_soundfonts({font for effect in EFFECTS for font in effect.fonts})
    cache_folder = packages or folder.parent / "packages"
    fetch_all(cache_folder)
    clips = plan(cache_folder, seed, per_class)
    make = partial(make_clip, cache_folder, seed, per_class)
    names = sorted(clips, key=lambda name: (Path(name).stem.split("_")[1], name))  # each source once, then again
    return write_audiofolder(folder, names, make, {"seed": seed}, jobs, title="Events")


@cache
def plan(packages: Path, seed: int, per_class: int) -> dict[str, Source]:
    """The source of every clip by the clip's file name."""
    by_class: dict[str | None, list[Source]] = defaultdict(list)
    for source in (*file_sources(packages), *effect_sources()):
        by_class[source.sound_class].append(source)
    clips = {}
    for sound_class, sources in by_class.items():
        random.Random(f"{seed}:{sound_class}").shuffle(sources)
        wanted = -(-per_class // len(sources)) if sound_class else UNCLASSED_VARIANTS
        for source in sources[:per_class]:
            most = MAX_VARIANTS_EFFECT if source.effect else MAX_VARIANTS_FILE
            for variant in range(min(wanted, most)):
                clips[f"events/{source.name}_{variant:02d}.opus"] = source
    return clips


def file_sources(packages: Path) -> list[Source]:
    """The package files that a rule names, each sound once."""
    sources, seen = [], set()
    for package in sorted(SOUND_PACKAGES):
        for index, path in enumerate(sorted((packages / package).iterdir())):
            digest = hashlib.sha256(path.read_bytes()).digest()
            found = find_rule(original_name(path), SOUND_PACKAGES[package].rules)
            if found is None or digest in seen:
                continue
            seen.add(digest)
            sources.append(Source(f"{package}/{index:04d}", *found, path=path))
    return sources


def effect_sources() -> list[Source]:
    """Each effect with each soundfont that has it."""
    return [
        Source(f"{SOUNDFONTS[font].package}/{index:04d}", effect.sound_class, effect.phrase, effect=effect, font=font)
        for index, effect in enumerate(EFFECTS)
        for font in effect.fonts
    ]


def make_clip(packages: Path, seed: int, per_class: int, name: str) -> Clip | None:
    """Make the clip of a name."""
    source = plan(packages, seed, per_class)[name]
    rng = random.Random(f"{seed}:{name}")
    audio = play_effect(rng, source.effect, source.font) if source.effect else read_sound(source.path)
    variant = vary(rng, audio)
    return None if variant is None else Clip(variant, {"text": describe(source.phrase, name), **source.row})


def read_sound(path: Path | None) -> np.ndarray:
    """A sound file as mono audio at 16 kHz without its quiet ends."""
    assert path is not None
    audio, rate = soundfile.read(io.BytesIO(path.read_bytes()), dtype="float32", always_2d=True)
    return trim_silence(soxr.resample(audio.mean(axis=1), rate, SAMPLING_RATE))


def vary(rng: random.Random, audio: np.ndarray) -> np.ndarray | None:
    """A variant of a sound; `None` if there is nothing to hear."""
    if not len(audio) or not np.abs(audio).max():
        return None
    audio = soxr.resample(audio, SAMPLING_RATE * rng.uniform(*SPEEDS), SAMPLING_RATE)
    audio = tilt(audio, rng.uniform(-0.5, 0.6))
    audio = section(rng, audio, round(rng.uniform(3.0, MAX_SECONDS) * SAMPLING_RATE))
    audio = repeat(rng, audio)
    shortage = max(0, round(MIN_SECONDS * SAMPLING_RATE) - len(audio))
    return fit_peak(np.pad(fade_out(audio), (0, shortage)), rng.uniform(*PEAKS))


def section(rng: random.Random, audio: np.ndarray, length: int) -> np.ndarray:
    """A part of a long sound, mostly its beginning."""
    if len(audio) <= length:
        return audio
    begin = 0 if rng.random() < 0.5 else rng.randrange(len(audio) - length)
    return audio[begin : begin + length]


def repeat(rng: random.Random, audio: np.ndarray) -> np.ndarray:
    """A short sound once or up to three times."""
    times = rng.choice((1, 1, 2, 3)) if len(audio) < REPEATED_SECONDS * SAMPLING_RATE else 1
    pause = np.zeros(round(rng.uniform(0.05, 0.6) * SAMPLING_RATE), dtype=audio.dtype)
    return np.concatenate([audio, *([pause, audio] * (times - 1))])
