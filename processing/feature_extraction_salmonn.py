"""Audio features of SALMONN: Whisper's log-mel and BEATs' Kaldi fbank, on one time axis of 10 ms frames."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from numbers import Real
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.audio_utils import mel_filter_bank
from transformers.utils import logging

from .audio_io_salmonn import AudioAccess, AudioSource, Waveform, check_rate, is_rated, load_mono
from .audio_segments_salmonn import (
    LONGEST_CLIP_FRAMES,
    MEL_FRAMES_PER_SECOND,
    AudioLayout,
    SegmentGroup,
    is_finite_number,
    whole_length,
)
from .processor_options_salmonn import EXTRACTOR_OPTIONS, check_names


logger = logging.get_logger(__name__)

SAMPLING_RATE = 16000
HOP_SAMPLES = SAMPLING_RATE // MEL_FRAMES_PER_SECOND  # 160 samples, 10 ms, of both features
MIN_SAMPLES = SAMPLING_RATE  # shorter clips are padded to 1 s, as in the research code

MEL_FFT_SAMPLES = 400  # 25 ms
FBANK_WINDOW_SAMPLES = 400  # 25 ms
FBANK_FFT_SAMPLES = 512  # the next power of two
FBANK_PREEMPHASIS = 0.97
FBANK_LOWEST_HZ = 20.0
PCM_SCALE = 2.0**15  # Kaldi works on 16-bit sample values
KALDI_FLOOR = 1.1920928955078125e-07  # float32 epsilon

UNSAVED = ("allow_paths", "allow_urls")
MOST_BINS = 1024
LARGEST_FBANK, SMALLEST_FBANK_STD = 100, 0.01  # energies of 16-bit samples have logarithms between -16 and 35
BATCH_SAMPLES = 30 * SAMPLING_RATE  # of segments that are transformed at once: these need 100 times their memory


class SalmonnFeatureExtractor(SequenceFeatureExtractor):
    """Turns audio of any kind into the inputs of both encoders.

    Each clip is one row. A clip longer than the longest segment becomes consecutive segments along the time axis, so
    nothing is dropped; each segment is padded with silence to the smallest length in `segment_seconds` that holds it.

    Args:
        feature_size: mel bins of the log-mel (80, or 128 for Whisper large-v3).
        num_fbank_bins: mel bins of the fbank; 0 for a speech-only model, which gets no fbank.
        sampling_rate: rate of the encoders in Hz; everything else is resampled to it.
        segment_seconds, window_seconds, stride_seconds, num_query_tokens, trim_audio_tokens: as in `SalmonnConfig`;
            they decide how many audio tokens a clip becomes.
        fbank_mean, fbank_std: the fbank is normalised as `(fbank - mean) / (2 * std)` (BEATs, section 4.1).
        channel: channel to take from files with several; `None` averages them.
        max_audio_seconds: longer clips are an error, before they are decoded if their header tells; `None` allows 6
            hours.
        allow_paths: whether local files may be read. `False` means that clips come from strangers: URLs must lead to
            public addresses then. Bytes, base64 and `data:` URIs are always read.
        allow_urls: whether URLs may be read. Neither of the two is saved.

    Raises:
        ValueError: if a setting is of the wrong type or out of its range.
    """

    model_input_names = ["input_features", "input_features_mask", "audio_input_features", "audio_input_features_mask"]

    def __init__(
        self,
        feature_size: int = 80,
        num_fbank_bins: int = 128,
        sampling_rate: int = SAMPLING_RATE,
        segment_seconds: float | Sequence[float] = 30.0,
        window_seconds: float = 0.333333,
        stride_seconds: float = 0.333333,
        num_query_tokens: int = 1,
        trim_audio_tokens: bool = False,
        fbank_mean: float = 15.41663,
        fbank_std: float = 6.55582,
        channel: int | None = None,
        max_audio_seconds: float | None = None,
        padding_value: float = 0.0,
        allow_paths: bool = True,
        allow_urls: bool = True,
        **kwargs: Any,
    ):
        kwargs.pop("auto_map", None)  # of the folder this was loaded from; saving writes its own
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        if sampling_rate != SAMPLING_RATE:
            raise ValueError(f"The encoders need sampling_rate {SAMPLING_RATE}, got {sampling_rate}.")
        self.num_fbank_bins = num_fbank_bins
        self.segment_seconds = segment_seconds
        self.window_seconds = window_seconds
        self.stride_seconds = stride_seconds
        self.num_query_tokens = num_query_tokens
        self.trim_audio_tokens = trim_audio_tokens
        self.fbank_mean = fbank_mean
        self.fbank_std = fbank_std
        self.channel = channel
        self.max_audio_seconds = max_audio_seconds
        self.allow_paths = allow_paths
        self.allow_urls = allow_urls
        self._check_settings()
        if num_fbank_bins == 0:
            self.model_input_names = ["input_features", "input_features_mask"]

    @classmethod
    def from_dict(cls, feature_extractor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """An extractor of saved settings; `allow_paths` and `allow_urls` are taken although they are not saved."""
        given = {name: kwargs.pop(name) for name in UNSAVED if name in kwargs}
        return super().from_dict({**feature_extractor_dict, **given}, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The settings to save: without what the place of use decides."""
        return {name: value for name, value in super().to_dict().items() if name not in UNSAVED}

    @property
    def audio_layout(self) -> AudioLayout:
        """Segments, windows and tokens in frames."""
        return AudioLayout.from_seconds(
            self.segment_seconds,
            self.window_seconds,
            self.stride_seconds,
            self.num_query_tokens,
            self.trim_audio_tokens,
        )

    def fetch_audio(
        self,
        audio: Any,
        sampling_rate: int | None = None,
        allow_paths: bool | None = None,
        allow_urls: bool | None = None,
    ) -> Any:
        """Read one clip, or each clip of a list, as mono float32 samples at `self.sampling_rate`.

        Args:
            audio: see `load_mono`.
            sampling_rate: rate in Hz of bare samples.
            allow_paths: whether local files may be read; `None` for what the extractor allows.
            allow_urls: whether URLs may be read; likewise.

        Raises:
            ValueError: for clips that cannot or may not be read or exceed `max_audio_seconds`; names the clip.
        """
        access = AudioAccess(
            _check_flag("allow_paths", self.allow_paths if allow_paths is None else allow_paths),
            _check_flag("allow_urls", self.allow_urls if allow_urls is None else allow_urls),
            self.max_audio_seconds,
        )
        rate = None if sampling_rate is None else check_rate(sampling_rate, "audio")
        if is_batch(audio):
            return [self._load(clip, rate, f"audio {index}", access) for index, clip in enumerate(audio)]
        return self._load(audio, rate, "audio", access)

    def __call__(
        self,
        audio: AudioSource | Sequence[AudioSource],
        sampling_rate: int | None = None,
        return_tensors: str | None = "pt",
        padding: bool | str = True,
        **kwargs: Any,
    ) -> BatchFeature:
        """Extract both features of one clip or a list of clips.

        Args:
            audio: one clip or a list; each a path, URL, bytes, open file, array, tensor, pair of array and rate, or
                `datasets` value (see `load_mono`).
            sampling_rate: rate in Hz of bare samples; 16 kHz is assumed, with a warning, if it is not given.
            return_tensors: "pt" or "np".
            padding: accepted for the interface's sake; rows are always padded to the longest.

        Returns:
            `BatchFeature`, each with one row per clip; frames are 10 ms:
            `input_features` `(clips, mel, frames)`, log-mel of the padded segments one after the other;
            `input_features_mask` `(clips, frames)`, 1 for as many frames as the clip has audio;
            `audio_input_features` `(clips, frames, bins)` and `audio_input_features_mask` `(clips, frames)`, if the
            model has BEATs.

        Raises:
            ValueError: for audio that cannot be used, naming the clip.
        """
        check_names(kwargs, EXTRACTOR_OPTIONS, "SalmonnFeatureExtractor")
        if return_tensors not in ("pt", "np", None):
            raise ValueError(f"return_tensors must be 'pt' or 'np', got {return_tensors!r}.")
        clips = self.fetch_audio(audio if is_batch(audio) else [audio], sampling_rate)
        if not clips:
            raise ValueError("Got an empty list of clips; pass at least one.")
        features = self._extract([_as_tensor(clip) for clip in clips])
        if return_tensors == "np":
            return BatchFeature({name: value.cpu().numpy() for name, value in features.items()})
        return BatchFeature(features)

    def num_audio_frames(self, num_samples: int) -> int:
        """Mel frames (10 ms) that a clip of `num_samples` touches.

        Raises:
            ValueError: if that is no whole number of samples, negative, or more than a day.
        """
        return -(-whole_length(num_samples, LONGEST_CLIP_FRAMES * HOP_SAMPLES, "samples") // HOP_SAMPLES)

    def num_audio_tokens(self, num_samples: int) -> int:
        """Audio tokens that a clip of `num_samples` at 16 kHz becomes."""
        return self.audio_layout.num_audio_tokens(self.num_audio_frames(num_samples))

    def _load(self, clip: AudioSource, sampling_rate: int | None, name: str, access: AudioAccess) -> Waveform:
        is_bare = isinstance(clip, (np.ndarray, torch.Tensor, list, tuple)) and not is_rated(clip)
        if sampling_rate is None and is_bare:
            logger.warning_once(
                f"Got samples without a sampling_rate; {self.sampling_rate} Hz is assumed. Pass it to be sure."
            )
        return load_mono(clip, self.sampling_rate, sampling_rate, self._channel_of(clip), name, access)

    def _channel_of(self, clip: AudioSource) -> int | None:
        is_mono_array = isinstance(clip, (np.ndarray, torch.Tensor)) and clip.ndim == 1
        return None if is_mono_array else self.channel

    def _extract(self, clips: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        layout = self.audio_layout
        frames = [self.num_audio_frames(len(clip)) for clip in clips]
        total = max(layout.padded_length(count) for count in frames)
        device = clips[0].device
        log_mel = torch.zeros(len(clips), self.feature_size, total, device=device)
        fbank = torch.zeros(len(clips), total, self.num_fbank_bins, device=device)
        audio_input_features_mask = torch.zeros(len(clips), total, dtype=torch.long, device=device)

        for group in _batched(layout.plan(frames)):
            spans = [slice(segment.offset * HOP_SAMPLES, segment.end * HOP_SAMPLES) for segment in group.segments]
            samples = [clips[segment.clip][span] for segment, span in zip(group.segments, spans, strict=True)]
            waveforms = torch.zeros(len(samples), group.padded_frames * HOP_SAMPLES, device=device)
            for row, waveform in enumerate(samples):
                waveforms[row, : len(waveform)] = waveform
            log_mels = self._log_mel(waveforms)
            for row, segment in enumerate(group.segments):
                log_mel[segment.clip, :, segment.offset : segment.end] = log_mels[row]
            if not self.num_fbank_bins:
                continue
            fbanks = self._normalised_fbank(waveforms)
            for row, segment in enumerate(group.segments):
                # whole windows of the audio alone, which is padded to no more than 1 s
                count = (max(len(samples[row]), MIN_SAMPLES) - FBANK_WINDOW_SAMPLES) // HOP_SAMPLES + 1
                span = slice(segment.offset, segment.offset + count)
                fbank[segment.clip, span] = fbanks[row, :count]
                audio_input_features_mask[segment.clip, span] = 1

        lengths = torch.tensor(frames, device=device)
        features = {
            "input_features": log_mel,
            "input_features_mask": (torch.arange(total, device=device) < lengths[:, None]).long(),
        }
        if self.num_fbank_bins:
            features["audio_input_features"] = fbank
            features["audio_input_features_mask"] = audio_input_features_mask
        return features

    def _check_settings(self) -> None:
        for name, value, lowest in (
            ("feature_size", self.feature_size, 1),
            ("num_fbank_bins", self.num_fbank_bins, 0),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= MOST_BINS:
                raise ValueError(f"{name} must be a whole number from {lowest} to {MOST_BINS}, got {value!r}.")
        if (self.feature_size, self.num_fbank_bins) == (128, 80):
            raise ValueError(
                "feature_size 128 and num_fbank_bins 80 are swapped: feature_size is that of Whisper's log-mel (80 or "
                "128), num_fbank_bins that of BEATs' fbank (128)."
            )
        for name in ("fbank_mean", "fbank_std"):
            value = getattr(self, name)
            if not is_finite_number(value) or (name == "fbank_std" and value <= 0):
                needed = "a positive number" if name == "fbank_std" else "a finite number"
                raise ValueError(f"{name} must be {needed}, got {value!r}.")
        if abs(self.fbank_mean) > LARGEST_FBANK or not SMALLEST_FBANK_STD <= self.fbank_std <= LARGEST_FBANK:
            raise ValueError(
                f"fbank_mean {self.fbank_mean:g} and fbank_std {self.fbank_std:g} cannot be those of fbanks, which "
                f"are logarithms within {LARGEST_FBANK}; BEATs was trained with 15.41663 and 6.55582."
            )
        if self.channel is not None and (type(self.channel) is not int or self.channel < 0):
            raise ValueError(f"channel must be None or a whole number from 0, got {self.channel!r}.")
        if self.max_audio_seconds is not None and not (
            is_finite_number(self.max_audio_seconds) and self.max_audio_seconds > 0
        ):
            raise ValueError(f"max_audio_seconds must be None or a positive number, got {self.max_audio_seconds!r}.")
        for name in UNSAVED:
            _check_flag(name, getattr(self, name))
        _ = self.audio_layout  # checks the settings of segments and windows

    def _log_mel(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Whisper's log-mel `(B, mel, frames)` of waveforms `(B, samples)`."""
        window = torch.hann_window(MEL_FFT_SAMPLES, device=waveforms.device)
        spectrum = torch.stft(waveforms, MEL_FFT_SAMPLES, HOP_SAMPLES, window=window, return_complex=True)
        power = spectrum[..., :-1].abs() ** 2
        filters = torch.from_numpy(_whisper_filters(self.feature_size)).to(waveforms)
        log_mel = (filters.T @ power).clamp(min=1e-10).log10()
        log_mel = torch.maximum(log_mel, log_mel.amax(dim=(1, 2), keepdim=True) - 8.0)
        return (log_mel + 4.0) / 4.0

    def _normalised_fbank(self, waveforms: torch.Tensor) -> torch.Tensor:
        """BEATs' input `(B, frames, bins)` of waveforms `(B, samples)`."""
        return ((kaldi_fbank(waveforms, self.num_fbank_bins) - self.fbank_mean) / (2 * self.fbank_std)).float()


def _batched(groups: list[SegmentGroup]) -> Iterator[SegmentGroup]:
    """The groups in parts of at most `BATCH_SAMPLES`, or of one segment."""
    for group in groups:
        count = max(1, BATCH_SAMPLES // (group.padded_frames * HOP_SAMPLES))
        for start in range(0, len(group.segments), count):
            yield replace(group, segments=group.segments[start : start + count])


def kaldi_fbank(waveforms: torch.Tensor, num_bins: int) -> torch.Tensor:
    """Log filter-bank energies as Kaldi computes them, without dither, whole windows only.

    Args:
        waveforms (`torch.Tensor` of shape `(batch, samples)`): 16 kHz, in [-1, 1).
        num_bins: mel bins between 20 Hz and 8 kHz.

    Returns:
        `torch.Tensor` of shape `(batch, 1 + (samples - 400) // 160, num_bins)`, in float64 where the device has it:
        in float32 quiet bins would be off by 1e-3.
    """
    dtype = torch.float32 if waveforms.device.type == "mps" else torch.float64
    frames = (waveforms.to(dtype) * PCM_SCALE).unfold(-1, FBANK_WINDOW_SAMPLES, HOP_SAMPLES)
    frames = frames - frames.mean(-1, keepdim=True)
    previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    window = torch.hann_window(FBANK_WINDOW_SAMPLES, periodic=False, dtype=dtype, device=waveforms.device) ** 0.85
    frames = (frames - FBANK_PREEMPHASIS * previous) * window
    power = torch.fft.rfft(frames, n=FBANK_FFT_SAMPLES).abs() ** 2
    filters = torch.from_numpy(_kaldi_filters(num_bins)).to(power)
    return (power @ filters).clamp(min=KALDI_FLOOR).log()


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


def _as_tensor(samples: Waveform) -> torch.Tensor:
    """The same memory where torch can use it, else a copy: of arrays that run backwards or are read-only."""
    if isinstance(samples, torch.Tensor):
        return samples
    return torch.from_numpy(np.require(samples, requirements=["C", "W"]))


def is_batch(audio: Any) -> bool:
    """Whether this is a list or a column of clips, rather than one clip: a list of numbers, or samples and rate."""
    if not isinstance(audio, Sequence) or isinstance(audio, (str, bytes, bytearray, memoryview)):
        return False
    return not (len(audio) > 0 and isinstance(audio[0], Real)) and not is_rated(audio)


def _check_flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}.")
    return value


__all__ = ["SalmonnFeatureExtractor", "is_batch", "kaldi_fbank"]
