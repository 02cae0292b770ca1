"""Audio features of SALMONN: Whisper's log-mel and BEATs' Kaldi fbank, on one time axis of 10 ms frames."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.utils import logging

from .audio_features_salmonn import FBANK_WINDOW_SAMPLES, HOP_SAMPLES, SAMPLING_RATE, kaldi_fbank, log_mel
from .audio_io_salmonn import Waveform, audio_seconds, is_batch, is_rated, load_mono
from .audio_samples_salmonn import check_rate
from .audio_segments_salmonn import LONGEST_CLIP_FRAMES, AudioLayout, SegmentGroup, is_finite_number, whole_length
from .audio_sources_salmonn import AudioAccess
from .processor_options_salmonn import EXTRACTOR_OPTIONS, check_names


logger = logging.get_logger(__name__)

MIN_SAMPLES = SAMPLING_RATE  # shorter clips are padded to 1 s, as in the research code
UNSAVED = ("allow_paths", "allow_urls", "max_download_bytes")
MOST_BINS = 1024
LARGEST_FBANK, SMALLEST_FBANK_STD = 100, 0.01  # energies of 16-bit samples have logarithms between -16 and 35
BATCH_SAMPLES = 30 * SAMPLING_RATE  # of segments that are transformed at once: these need 100 times their memory


@dataclass(frozen=True, eq=False)
class LoadedClip:
    """A clip that has been read and checked: the value that all steps behind the reading take.

    Args:
        samples: `(samples,)`, mono float32 at 16 kHz; `None` for a clip of which only the length is known.
        num_frames: mel frames (10 ms) that they touch.
    """

    samples: Any
    num_frames: Any


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
        allow_urls: whether URLs may be read.
        max_download_bytes: largest clip behind a URL; `None` allows 256 MiB, the most there may be. Neither this nor
            what is allowed is saved.

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
        max_download_bytes: int | None = None,
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
        self.max_download_bytes = max_download_bytes
        self._check_settings()
        if num_fbank_bins == 0:
            self.model_input_names = ["input_features", "input_features_mask"]

    @classmethod
    def from_dict(cls, feature_extractor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """An extractor of saved settings; those of `UNSAVED` are taken although they are not saved."""
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
        reading = dict[str, Any](sampling_rate=sampling_rate, allow_paths=allow_paths, allow_urls=allow_urls)
        if is_batch(audio):
            return [clip.samples for clip in self.load_clips(audio, **reading)]
        return self.load_clip(audio, **reading).samples

    def audio_seconds(
        self, audio: Any, sampling_rate: int | None = None, allow_paths: bool | None = None
    ) -> float | None:
        """Length of a clip in seconds without decoding it; `None` if that cannot tell, as for URLs.

        Args:
            audio, sampling_rate, allow_paths: as for `fetch_audio`.
        """
        access = AudioAccess(self.allow_paths if allow_paths is None else allow_paths)
        return audio_seconds(audio, access, self.sampling_rate if sampling_rate is None else sampling_rate)

    def load_clips(self, clips: Sequence[Any], **reading: Any) -> list[LoadedClip]:
        """Read each clip of a list; the options are those of `load_clip`."""
        return [self.load_clip(clip, name=f"audio {index}", **reading) for index, clip in enumerate(clips)]

    def load_clip(
        self,
        audio: Any,
        sampling_rate: int | None = None,
        allow_paths: bool | None = None,
        allow_urls: bool | None = None,
        name: str = "audio",
    ) -> LoadedClip:
        """Read one clip: the only step that fetches and checks audio; all later ones take what it returns.

        Args:
            audio, sampling_rate, allow_paths, allow_urls: as for `fetch_audio`.
            name: what to call the clip in messages when it has no path.

        Raises:
            ValueError: if it cannot or may not be read, or exceeds `max_audio_seconds`; names the clip.
        """
        access = AudioAccess(
            self.allow_paths if allow_paths is None else allow_paths,
            self.allow_urls if allow_urls is None else allow_urls,
            self.max_audio_seconds,
            self.max_download_bytes,
        )
        rate = None if sampling_rate is None else check_rate(sampling_rate, "audio")
        is_array = isinstance(audio, (np.ndarray, torch.Tensor))
        if rate is None and (is_array or (isinstance(audio, (list, tuple)) and not is_rated(audio))):
            logger.warning_once(
                f"Got samples without a sampling_rate; {self.sampling_rate} Hz is assumed. Pass it to be sure."
            )
        # Samples without channels are taken as they are, whichever channel is asked of the others.
        channel = None if is_array and audio.ndim == 1 else self.channel
        samples = load_mono(audio, self.sampling_rate, rate, channel, name, access)
        return LoadedClip(samples, self.num_audio_frames(len(samples)))

    def __call__(
        self,
        audio: Any,
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
        clips = self.load_clips(audio if is_batch(audio) else [audio], sampling_rate=sampling_rate)
        if not clips:
            raise ValueError("Got an empty list of clips; pass at least one.")
        return self.extract(clips, self.audio_layout, return_tensors)

    def extract(
        self, clips: Sequence[LoadedClip], layout: AudioLayout, return_tensors: str | None = "pt"
    ) -> BatchFeature:
        """Extract both features of clips that are loaded; see `__call__`.

        Args:
            clips: at least one.
            layout: that of this extractor.
            return_tensors: "pt" or "np".

        Raises:
            ValueError: for another type of tensors.
        """
        if return_tensors not in ("pt", "np", None):
            raise ValueError(f"return_tensors must be 'pt' or 'np', got {return_tensors!r}.")
        frames = [clip.num_frames for clip in clips]
        features = self._extract([_as_tensor(clip.samples) for clip in clips], frames, layout)
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

    def _extract(self, clips: list[torch.Tensor], frames: list[int], layout: AudioLayout) -> dict[str, torch.Tensor]:
        total = max(layout.padded_length(count) for count in frames)
        device = clips[0].device
        input_features = torch.zeros(len(clips), self.feature_size, total, device=device)
        fbank = torch.zeros(len(clips), total, self.num_fbank_bins, device=device)
        audio_input_features_mask = torch.zeros(len(clips), total, dtype=torch.long, device=device)

        for group in _batched(layout.plan(frames)):
            spans = [slice(segment.offset * HOP_SAMPLES, segment.end * HOP_SAMPLES) for segment in group.segments]
            samples = [clips[segment.clip][span] for segment, span in zip(group.segments, spans, strict=True)]
            waveforms = torch.zeros(len(samples), group.padded_frames * HOP_SAMPLES, device=device)
            for row, waveform in enumerate(samples):
                waveforms[row, : len(waveform)] = waveform
            log_mels = log_mel(waveforms, self.feature_size)
            for row, segment in enumerate(group.segments):
                input_features[segment.clip, :, segment.offset : segment.end] = log_mels[row]
            if not self.num_fbank_bins:
                continue
            lengths = [max(len(waveform), MIN_SAMPLES) for waveform in samples]
            fbanks = self._normalised_fbank(waveforms[:, : max(lengths)])
            for row, segment in enumerate(group.segments):
                # whole windows of the audio alone, which is padded to no more than 1 s
                count = (lengths[row] - FBANK_WINDOW_SAMPLES) // HOP_SAMPLES + 1
                span = slice(segment.offset, segment.offset + count)
                fbank[segment.clip, span] = fbanks[row, :count]
                audio_input_features_mask[segment.clip, span] = 1

        ends = torch.tensor(frames, device=device)
        features = {
            "input_features": input_features,
            "input_features_mask": (torch.arange(total, device=device) < ends[:, None]).long(),
        }
        if self.num_fbank_bins:
            features["audio_input_features"] = fbank
            features["audio_input_features_mask"] = audio_input_features_mask
        return features

    def _normalised_fbank(self, waveforms: torch.Tensor) -> torch.Tensor:
        """BEATs' input `(B, frames, bins)` of waveforms `(B, samples)`."""
        return ((kaldi_fbank(waveforms, self.num_fbank_bins) - self.fbank_mean) / (2 * self.fbank_std)).float()

    def _check_settings(self) -> None:
        channel, longest, largest = self.channel, self.max_audio_seconds, self.max_download_bytes
        checks = {
            "feature_size": (_is_whole(self.feature_size, 1, MOST_BINS), f"a whole number from 1 to {MOST_BINS}"),
            "num_fbank_bins": (_is_whole(self.num_fbank_bins, 0, MOST_BINS), f"a whole number from 0 to {MOST_BINS}"),
            "fbank_mean": (is_finite_number(self.fbank_mean), "a finite number"),
            "fbank_std": (is_finite_number(self.fbank_std) and self.fbank_std > 0, "a positive number"),
            "channel": (channel is None or _is_whole(channel, 0, None), "None or a whole number from 0"),
            "max_audio_seconds": (
                longest is None or (is_finite_number(longest) and longest > 0),
                "None or a positive number",
            ),
            "max_download_bytes": (largest is None or _is_whole(largest, 1, None), "None or a whole number from 1"),
        }
        for name, (is_valid, needed) in checks.items():
            if not is_valid:
                raise ValueError(f"{name} must be {needed}, got {getattr(self, name)!r}.")
        if (self.feature_size, self.num_fbank_bins) == (128, 80):
            raise ValueError(
                "feature_size 128 and num_fbank_bins 80 are swapped: feature_size is that of Whisper's log-mel (80 or "
                "128), num_fbank_bins that of BEATs' fbank (128)."
            )
        if abs(self.fbank_mean) > LARGEST_FBANK or not SMALLEST_FBANK_STD <= self.fbank_std <= LARGEST_FBANK:
            raise ValueError(
                f"fbank_mean {self.fbank_mean:g} and fbank_std {self.fbank_std:g} cannot be those of fbanks, which "
                f"are logarithms within {LARGEST_FBANK}; BEATs was trained with 15.41663 and 6.55582."
            )
        AudioAccess(self.allow_paths, self.allow_urls)  # checks both
        _ = self.audio_layout  # checks the settings of segments and windows


def _batched(groups: list[SegmentGroup]) -> Iterator[SegmentGroup]:
    """The groups in parts of at most `BATCH_SAMPLES`, or of one segment."""
    for group in groups:
        count = max(1, BATCH_SAMPLES // (group.padded_frames * HOP_SAMPLES))
        for start in range(0, len(group.segments), count):
            yield replace(group, segments=group.segments[start : start + count])


def _as_tensor(samples: Waveform) -> torch.Tensor:
    """The same memory where torch can use it, else a copy: of arrays that run backwards or are read-only."""
    if isinstance(samples, torch.Tensor):
        return samples
    return torch.from_numpy(np.require(samples, requirements=["C", "W"]))


def _is_whole(value: Any, lowest: int, highest: int | None) -> bool:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return is_whole and value >= lowest and (highest is None or value <= highest)


__all__ = ["LoadedClip", "SalmonnFeatureExtractor", "is_batch", "kaldi_fbank"]
