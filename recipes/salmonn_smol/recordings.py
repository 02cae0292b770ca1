"""How a clip might have been recorded elsewhere: in a room, over noise, at another level.

A connector that has heard nothing but clean voices hears real ones worse. All functions take and give samples
`(samples,)` at 16 kHz, and keep the length.
"""

import random
from collections.abc import Sequence

import numpy as np

from modeling_salmonn.data.mixing import relative_gain
from modeling_salmonn.data.rows import Row
from recipes.salmonn_smol.waveforms import SAMPLING_RATE, fit_peak, read_clip


ROOM_SHARE, NOISE_SHARE = 0.4, 0.5  # of the clips
REVERBERATION_SECONDS = (0.1, 0.6)  # until an echo has lost 60 dB
DIRECT_DB = (3.0, 15.0)  # how far above all echoes the voice itself is
FIRST_ECHO_SECONDS = (0.01, 0.03)
NOISE_DB = (5.0, 30.0)  # how far below the clip it lies
RECORDED_SHARE = 0.5  # of the noises, where there are recorded ones; the others are white to brown
SHORTEST_NOISE_SECONDS = 2.0
PEAKS = (0.1, 0.95)
COLOUR_HERTZ = 20  # below it coloured noise grows no further


def noise_rows(rows: Sequence[Row]) -> list[Row]:
    """The clips among some rows that can lie behind a voice."""
    return [row for row in rows if row["kind"] == "event" and row["seconds"] > SHORTEST_NOISE_SECONDS]


def record_elsewhere(samples: np.ndarray, noises: Sequence[Row], rng: random.Random) -> np.ndarray:
    """A clip in another room, with noise, at another level; each of it by chance.

    Args:
        samples: the clip.
        noises: rows of recorded noises, from `noise_rows`; there may be none.
        rng: of all choices.
    """
    if rng.random() < ROOM_SHARE:
        samples = add_room(samples, rng)
    if rng.random() < NOISE_SHARE:
        recorded = noises and rng.random() < RECORDED_SHARE
        noise = _recorded_noise(len(samples), noises, rng) if recorded else coloured_noise(len(samples), rng)
        samples = samples + relative_gain(noise, samples, -rng.uniform(*NOISE_DB)) * noise
    return fit_peak(samples, rng.uniform(*PEAKS))


def add_room(samples: np.ndarray, rng: random.Random) -> np.ndarray:
    """The clip with echoes: noise that decays, as late echoes do."""
    seconds = rng.uniform(*REVERBERATION_SECONDS)
    length = int(seconds * SAMPLING_RATE)
    decay = 10 ** (-3 * np.arange(length) / length)  # 60 dB
    response = np.random.default_rng(rng.getrandbits(32)).standard_normal(length) * decay
    response[: int(rng.uniform(*FIRST_ECHO_SECONDS) * SAMPLING_RATE)] = 0
    response *= 10 ** (-rng.uniform(*DIRECT_DB) / 20) / np.linalg.norm(response)
    response[0] = 1
    size = len(samples) + length
    echoed = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(response, size), size)
    return echoed[: len(samples)].astype(np.float32)


def coloured_noise(length: int, rng: random.Random) -> np.ndarray:
    """Noise between white and brown: its magnitude falls with the frequency to a power of 0 to 1."""
    spectrum = np.fft.rfft(np.random.default_rng(rng.getrandbits(32)).standard_normal(length))
    bins = np.maximum(np.arange(len(spectrum)), COLOUR_HERTZ * length / SAMPLING_RATE)
    return np.fft.irfft(spectrum / bins ** rng.uniform(0.0, 1.0), length).astype(np.float32)


def _recorded_noise(length: int, noises: Sequence[Row], rng: random.Random) -> np.ndarray:
    """A recorded noise from some place on, again and again."""
    noise = read_clip(rng.choice(noises)["path"])
    return np.resize(np.roll(noise, rng.randrange(len(noise))), length)
