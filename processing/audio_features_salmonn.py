"""The spectra that the two encoders hear: Whisper's log-mel and BEATs' Kaldi fbank, both in frames of 10 ms."""

import warnings
from functools import lru_cache

import numpy as np
import torch
from transformers.audio_utils import mel_filter_bank

from .audio_segments_salmonn import MEL_FRAMES_PER_SECOND


SAMPLING_RATE = 16000
HOP_SAMPLES = SAMPLING_RATE // MEL_FRAMES_PER_SECOND  # 160 samples, 10 ms, of both features

MEL_FFT_SAMPLES = 400  # 25 ms
FBANK_WINDOW_SAMPLES = 400  # 25 ms
FBANK_FFT_SAMPLES = 512  # the next power of two
FBANK_PREEMPHASIS = 0.97
FBANK_LOWEST_HZ = 20.0
PCM_SCALE = 2.0**15  # Kaldi works on 16-bit sample values
KALDI_FLOOR = 1.1920928955078125e-07  # float32 epsilon


def log_mel(waveforms: torch.Tensor, num_bins: int) -> torch.Tensor:
    """Whisper's log-mel.

    Args:
        waveforms (`torch.Tensor` of shape `(batch, samples)`): 16 kHz, in [-1, 1).
        num_bins: mel bins between 0 Hz and 8 kHz.

    Returns:
        `torch.Tensor` of shape `(batch, num_bins, samples // 160)`.
    """
    window = torch.hann_window(MEL_FFT_SAMPLES, device=waveforms.device)
    spectrum = torch.stft(waveforms, MEL_FFT_SAMPLES, HOP_SAMPLES, window=window, return_complex=True)
    power = _power(spectrum[..., :-1])  # Whisper drops the last frame, which is centred on the end
    filters = torch.from_numpy(_whisper_filters(num_bins)).to(waveforms)
    levels = (filters.T @ power).clamp(min=1e-10).log10()
    # At most 8 powers of ten (80 dB) below the loudest, then about [-1, 1], as in Whisper's `log_mel_spectrogram`.
    levels = torch.maximum(levels, levels.amax(dim=(1, 2), keepdim=True) - 8.0)
    return (levels + 4.0) / 4.0


def kaldi_fbank(waveforms: torch.Tensor, num_bins: int) -> torch.Tensor:
    """Log filter-bank energies as Kaldi computes them, without dither, whole windows only.

    Args:
        waveforms (`torch.Tensor` of shape `(batch, samples)`): 16 kHz, in [-1, 1).
        num_bins: mel bins between 20 Hz and 8 kHz.

    Returns:
        `torch.Tensor` of shape `(batch, 1 + (samples - 400) // 160, num_bins)`, in float64 where the device has it:
        in float32 quiet bins would be off by up to 1e-2.
    """
    dtype = torch.float32 if waveforms.device.type == "mps" else torch.float64
    # (B, samples) to (B, frames, 400): overlapping windows
    frames = (waveforms.to(dtype) * PCM_SCALE).unfold(-1, FBANK_WINDOW_SAMPLES, HOP_SAMPLES)
    # As Kaldi does: without the mean, pre-emphasis within the window, and its own "povey" window.
    frames = frames - frames.mean(-1, keepdim=True)
    previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    window = torch.hann_window(FBANK_WINDOW_SAMPLES, periodic=False, dtype=dtype, device=waveforms.device) ** 0.85
    frames.sub_(previous, alpha=FBANK_PREEMPHASIS).mul_(window)
    # Of (B, frames, 400) samples, (B, frames, 257) powers.
    power = _power(torch.fft.rfft(frames, n=FBANK_FFT_SAMPLES))
    filters = torch.from_numpy(_kaldi_filters(num_bins)).to(power)
    return (power @ filters).clamp(min=KALDI_FLOOR).log()


def _power(spectrum: torch.Tensor) -> torch.Tensor:
    return spectrum.real.square() + spectrum.imag.square()  # the square of `abs`, without its root


@lru_cache
def _whisper_filters(num_bins: int) -> np.ndarray:
    filters = mel_filter_bank(
        num_frequency_bins=1 + MEL_FFT_SAMPLES // 2,
        num_mel_filters=num_bins,
        min_frequency=0.0,
        max_frequency=SAMPLING_RATE / 2,
        sampling_rate=SAMPLING_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    return filters.astype(np.float32)


@lru_cache
def _kaldi_filters(num_bins: int) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of 128 bins over 257 frequencies, the lowest are narrower than one
        return mel_filter_bank(
            num_frequency_bins=1 + FBANK_FFT_SAMPLES // 2,
            num_mel_filters=num_bins,
            min_frequency=FBANK_LOWEST_HZ,
            max_frequency=SAMPLING_RATE / 2,
            sampling_rate=SAMPLING_RATE,
            norm=None,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )
