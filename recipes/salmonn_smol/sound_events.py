"""Sound events with captions.

- sources: the sounds of Debian packages, and the sound effects, bells, drums and instruments of soundfonts
- each class gets about as many clips: a source is varied more often where a class has few of them
- a variant has another speed, tone, loudness and section; a soundfont's effect also other pitches and lengths
"""

import hashlib
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import soxr
import typer

from modeling_salmonn.data.rows import Row
from recipes.salmonn_smol.arguments import Folder, Jobs, Seed
from recipes.salmonn_smol.audiofolder import MadeClip, write_audiofolder
from recipes.salmonn_smol.sound_captions import describe
from recipes.salmonn_smol.sound_effects import EFFECTS, play_effect
from recipes.salmonn_smol.sound_packages import SOUND_PACKAGES, fetch_all, find_rule, original_name
from recipes.salmonn_smol.soundfonts import SOUNDFONTS, require_soundfonts
from recipes.salmonn_smol.waveforms import SAMPLING_RATE, fade_out, fit_peak, read_any, tilt, trim_silence


MAX_VARIANTS_FILE, MAX_VARIANTS_EFFECT = 10, 14
UNCLASSED_VARIANTS = 2
MIN_SECONDS, MAX_SECONDS = 0.3, 8.0
REPEATED_SECONDS = 0.8  # shorter sounds are heard up to three times
SPEEDS = (0.88, 1.14)
PEAKS = (0.25, 0.95)


@dataclass(frozen=True)
class Source:
    """Where clips come from: a file of a package, or an effect of a soundfont.

    Args:
        name (`str`): Package and number.
        sound_class (`str`, *optional*), phrase (`str`): What is heard.
        origin (`dict`): The columns of a clip's row that tell its origin.
        most_variants (`int`): How often it may be heard.
        play (`Callable`): Gives its audio.
    """

    name: str
    sound_class: str | None
    phrase: str
    origin: Row
    most_variants: int
    play: Callable[[random.Random], np.ndarray]


def collect_sounds(
    folder: Folder,
    packages: Annotated[Path | None, typer.Option(help="Where packages are kept; else beside the folder.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="About how many clips a class gets.")] = 54,
    seed: Seed = 0,
    jobs: Jobs = 1,
) -> list[Row]:
    """Collect sound events from soundfonts and data packages of Debian."""
    require_soundfonts({font for effect in EFFECTS for font in effect.fonts})
    packages = packages or folder.parent / "packages"
    fetch_all(packages)
    sources = plan_events(packages, seed, limit)
    names = sorted(sources, key=lambda name: (Path(name).stem.split("_")[1], name))  # each source once, then again
    return write_audiofolder(folder, names, partial(make_event, sources, seed), {"seed": seed}, jobs)


def plan_events(packages: Path, seed: int, limit: int) -> dict[str, Source]:
    """The source of every clip by the clip's file name."""
    by_class: dict[str | None, list[Source]] = defaultdict(list)
    for source in (*file_sources(packages), *effect_sources()):
        by_class[source.sound_class].append(source)
    clips = {}
    for sound_class, sources in by_class.items():
        random.Random(f"{seed}:{sound_class}").shuffle(sources)
        variants = -(-limit // len(sources)) if sound_class else UNCLASSED_VARIANTS
        for source in sources[:limit]:
            for variant in range(min(variants, source.most_variants)):
                clips[f"events/{source.name}_{variant:02d}.opus"] = source
    return clips


def file_sources(packages: Path) -> list[Source]:
    """The package files that a rule names, each sound once."""
    sources, seen = [], set()
    for package in sorted(SOUND_PACKAGES):
        licence, rules = SOUND_PACKAGES[package]["licence"], SOUND_PACKAGES[package]["rules"]
        origin = {"source": package, "licence": licence, "label_origin": "file name"}
        for index, path in enumerate(sorted((packages / package).iterdir())):
            digest = hashlib.sha256(path.read_bytes()).digest()
            found = find_rule(original_name(path), rules)
            if found is not None and digest not in seen:
                seen.add(digest)
                play = partial(play_file, path)
                sources.append(Source(f"{package}/{index:04d}", *found, origin, MAX_VARIANTS_FILE, play))
    return sources


def play_file(path: Path, _: random.Random) -> np.ndarray:
    """The sound of a file; nothing is left to chance yet."""
    return trim_silence(read_any(path))


def effect_sources() -> list[Source]:
    """Each effect with each soundfont that has it."""
    sources = []
    for index, effect in enumerate(EFFECTS):
        for name in effect.fonts:
            font = SOUNDFONTS[name]
            origin = {"source": font.package, "licence": font.licence, "label_origin": "what was rendered"}
            play = partial(play_effect, effect, name)
            named = (f"{font.package}/{index:04d}", effect.sound_class, effect.phrase)
            sources.append(Source(*named, origin, MAX_VARIANTS_EFFECT, play))
    return sources


def make_event(sources: dict[str, Source], seed: int, name: str) -> MadeClip | None:
    """Make the clip of a name."""
    source = sources[name]
    rng = random.Random(f"{seed}:{name}")
    variant = vary(rng, source.play(rng))
    if variant is None:
        return None
    row = {"kind": "event", "text": describe(source.phrase, name), **source.origin}
    if source.sound_class:
        row["sound_class"] = source.sound_class
    return MadeClip(variant, row)


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
