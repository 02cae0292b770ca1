"""Varied copies of sounds and music: faster or slower and so higher or lower, brighter or duller, with some noise.

A connector that meets the same clips again and again learns them by heart; whatever a clip is, it stays in its copies.
Speech needs none: there is enough of it.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soxr

from modeling_salmonn.data.mixing import relative_gain
from modeling_salmonn.data.rows import Row
from recipes.salmonn_smol.arguments import AudioFolders, Folder, Jobs, Seed
from recipes.salmonn_smol.audiofolder import MadeClip, digest_rows, read_audiofolders, write_audiofolder
from recipes.salmonn_smol.waveforms import SAMPLING_RATE, fit_peak, read_clip


COPIES = {"event": 1, "music": 2}
SPEEDS = {"event": (0.8, 1.25), "music": (0.95, 1.05)}  # a sound changes by up to three semitones, a piece hardly
MUSIC_SECONDS = (2.5, 4.5)  # its instruments are heard in a part as well
MOST_TILT = 0.5  # of the sample before: about 10 dB between low and high
NOISE_SHARE, NOISE_DB = 0.5, (20.0, 45.0)  # how many copies have noise, and how far below the clip it lies
PEAKS = (0.2, 0.95)


class VariantMaker:
    """Makes the clip of a name such as `music/000017_1.flac`; the name alone decides how it is varied.

    Args:
        rows: clips by their place in the name, from `read_audiofolder`.
        seed: of all choices.
    """

    def __init__(self, rows: Sequence[Row], seed: int = 0):
        self.rows = rows
        self.seed = seed

    def names(self) -> list[str]:
        """Names of all copies."""
        kinds = [(index, row["kind"]) for index, row in enumerate(self.rows) if row["kind"] in COPIES]
        return [f"{kind}/{index:06d}_{copy}.flac" for index, kind in kinds for copy in range(COPIES[kind])]

    def __call__(self, name: str) -> MadeClip:
        row = self.rows[int(Path(name).stem.split("_")[0])]
        rng = random.Random(f"{self.seed}/{name}")
        samples = read_clip(row["path"])
        if row["kind"] == "music":
            length = min(len(samples), round(rng.uniform(*MUSIC_SECONDS) * SAMPLING_RATE))
            samples = samples[rng.randint(0, len(samples) - length) :][:length]
        varied = fit_peak(vary(samples, SPEEDS[row["kind"]], rng), rng.uniform(*PEAKS))
        kept = {key: value for key, value in row.items() if key not in ("file_name", "path", "seconds")}
        return MadeClip(varied, kept)


def vary(samples: np.ndarray, speeds: tuple[float, float], rng: random.Random) -> np.ndarray:
    """A clip at another speed, with another balance of low and high, half of the time with noise.

    Args:
        samples: the clip `(samples,)`.
        speeds: slowest and fastest speed; 1 is the clip's own.
        rng: of all choices.
    """
    varied = soxr.resample(samples, SAMPLING_RATE * rng.uniform(*speeds), SAMPLING_RATE)
    varied = varied - rng.uniform(-MOST_TILT, MOST_TILT) * np.concatenate([varied[:1], varied[:-1]])
    if rng.random() < NOISE_SHARE:
        decibels = -rng.uniform(*NOISE_DB)
        noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(len(varied), dtype=np.float32)
        varied = varied + relative_gain(noise, varied, decibels) * noise
    return varied


def make_variants(folder: Folder, sources: AudioFolders, seed: Seed = 0, jobs: Jobs = 1) -> list[Row]:
    """Make varied copies of sounds and music: other speeds, other balance, noise."""
    rows = read_audiofolders(sources)
    maker = VariantMaker(rows, seed)
    return write_audiofolder(folder, maker.names(), maker, {"seed": seed, "clips": digest_rows(rows)}, jobs)
