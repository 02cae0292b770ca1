"""A cache of what the frozen encoders make of clips: encode once, train many epochs.

```
folder/speech-3f2a...../ab/ab12....safetensors     one file a clip and encoder
       audio-77b0...../ab/ab12....safetensors      named by the hash of the clip's bytes
```

The folder's name is a hash of the encoder's weights, of its config and of all settings that change its states, so
another encoder or another clip never meets old states. Files are written under another name and renamed: an
interrupted write leaves nothing that could be read, and several processes may fill one cache.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import PreTrainedModel

from modeling_salmonn.data.files import replaced_whole
from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.processing.audio_segments_salmonn import MEL_FRAMES_PER_ENCODER_FRAME, AudioLayout
from modeling_salmonn.processing.feature_extraction_salmonn import SalmonnFeatureExtractor


FEATURES = {"speech": "input_features", "audio": "audio_input_features"}
MIN_TAIL_FRAMES = 25  # so that trying other short windows does not mean to encode anew
ORIGIN_FIELDS = ("architectures", "dtype", "transformers_version")  # saving and loading change these alone


class EncoderCache:
    """States of the frozen encoders for clips in files.

    Args:
        folder: where states are kept; shared by models with the same encoders.
        model: encodes clips; its encoders must stay as they are.
        feature_extractor: the model's.
        dtype: of the states on disk.
    """

    model: Any  # None in a worker that was spawned

    def __init__(
        self,
        folder: str | os.PathLike,
        model: SalmonnForConditionalGeneration,
        feature_extractor: SalmonnFeatureExtractor,
        dtype: torch.dtype = torch.float16,
    ):
        self.feature_extractor = feature_extractor
        self.model = model
        self.dtype = dtype
        self._hashes: dict[str, str] = {}  # of each clip's bytes, which do not change during a run
        base = model.model
        self.folders: dict[str, Path] = {}
        for name, encoder in (("speech", base.speech_encoder), ("audio", base.audio_encoder)):
            if encoder is not None:
                settings = _encoding_settings(name, feature_extractor, dtype)
                self.folders[name] = Path(folder) / f"{name}-{_fingerprint(encoder, settings)}"

    def __getstate__(self) -> dict[str, Any]:
        """What workers that are spawned get: they read states, and encode none."""
        return self.__dict__ | {"model": None}

    def get(self, clip: str) -> tuple[torch.Tensor, int]:
        """States `(encoder_frames, width)` of a clip, which is encoded if need be, and its length in mel frames."""
        self.encode([clip], progress=False)
        streams, frames = [], 0
        for name in self.folders:
            with safe_open(self._file(name, clip), "pt") as file:
                streams.append(file.get_tensor("states"))
                frames = int(file.metadata()["mel_frames"])
        return torch.cat(streams, dim=-1), frames

    def encode(self, clips: Sequence[str], batch_size: int = 16, progress: bool = True) -> list[tuple[str, Exception]]:
        """Encode the clips that are not there yet, in batches of similar length.

        Those that cannot be read are returned with what is wrong; a single one is an error instead.
        """
        missing = [clip for clip in dict.fromkeys(clips) if not self._is_complete(clip)]
        if not missing:
            return []
        if self.model is None:
            raise ValueError(f"{missing[0]} has no states yet; encode all clips before workers are started.")
        # By the size of their files, which is near enough to their length: little of a batch is padding.
        missing.sort(key=lambda clip: os.path.getsize(clip) if os.path.isfile(clip) else 0)
        problems: list[tuple[str, Exception]] = []
        with tqdm(total=len(missing), desc="Encoding clips", unit="clip", disable=not progress) as bar:
            for start in range(0, len(missing), batch_size):
                samples = {}
                for clip in missing[start : start + batch_size]:
                    bar.update()
                    if self._is_complete(clip):  # another process was faster
                        continue
                    try:
                        samples[clip] = self.feature_extractor.fetch_audio([clip])[0]
                    except (ValueError, OSError) as error:
                        if len(clips) == 1:
                            raise
                        problems.append((clip, error))
                if samples:
                    self._encode_batch(samples)
        return problems

    @torch.inference_mode()
    def _encode_batch(self, samples: Mapping[str, torch.Tensor]) -> None:
        """Run the encoders that lack any of these clips: of a model that gets a second encoder only that one."""
        extractor = self.feature_extractor
        lacking = [name for name in self.folders if not all(self._has(name, clip) for clip in samples)]
        if not lacking:  # another process was faster
            return
        inputs = extractor(list(samples.values()), sampling_rate=extractor.sampling_rate, return_tensors="pt")
        for name in FEATURES.keys() - lacking:
            inputs.pop(FEATURES[name], None)  # an encoder without features is not run
        encoded = self.model.eval().get_encoder_states(**inputs.to(self.model.device))
        for row, clip in enumerate(samples):  # of states (clips, encoder_frames, width), one an encoder
            mel_frames = int(inputs["input_features_mask"][row].sum())
            needed = _frames_kept(extractor.audio_layout, mel_frames)
            for name, states in zip(lacking, encoded, strict=True):
                kept = states[row, :needed].to("cpu", self.dtype).contiguous()  # a view would save the whole batch
                self._write(self._file(name, clip), kept, mel_frames)

    def _write(self, file: Path, states: torch.Tensor, mel_frames: int) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replaced_whole(file) as unfinished:
            save_file({"states": states}, unfinished, metadata={"mel_frames": str(mel_frames)})

    def _is_complete(self, clip: str) -> bool:
        return os.path.isfile(clip) and all(self._has(name, clip) for name in self.folders)

    def _has(self, name: str, clip: str) -> bool:
        return _is_readable(self._file(name, clip))

    def _file(self, name: str, clip: str) -> Path:
        if clip not in self._hashes:
            self._hashes[clip] = hashlib.sha256(Path(clip).read_bytes()).hexdigest()
        content = self._hashes[clip]
        return self.folders[name] / content[:2] / f"{content}.safetensors"


def is_file_clip(clip: Any) -> bool:
    """Whether a cache can hold a clip: the path of a file, neither a URL nor audio within a table."""
    return isinstance(clip, str) and clip != "" and "://" not in clip


def pad_states(clips: Sequence[tuple[torch.Tensor, int]]) -> dict[str, torch.Tensor]:
    """The model's inputs `encoder_hidden_states` and `input_features_mask` out of what `EncoderCache.get` gives."""
    states = torch.nn.utils.rnn.pad_sequence([states.float() for states, _ in clips], batch_first=True)
    lengths = torch.tensor([frames for _, frames in clips])
    frames = torch.arange(MEL_FRAMES_PER_ENCODER_FRAME * states.shape[1])
    return {"encoder_hidden_states": states, "input_features_mask": (frames < lengths[:, None]).long()}


def _encoding_settings(name: str, extractor: SalmonnFeatureExtractor, dtype: torch.dtype) -> str:
    """All settings that change the states that are kept of an encoder."""
    layout = extractor.audio_layout
    kept = "all" if not layout.trim_audio_tokens else _tail(layout)
    features: tuple[float, ...] = (extractor.feature_size,)
    if name == "audio":
        features = (extractor.num_fbank_bins, extractor.fbank_mean, extractor.fbank_std)
    return f"{features} {extractor.channel} {layout.segment_frames} {kept} {dtype}"


def _tail(layout: AudioLayout) -> int:
    """Encoder frames kept behind the audio: the last window reads into them."""
    return max(MIN_TAIL_FRAMES, layout.window_frames)


def _frames_kept(layout: AudioLayout, mel_frames: int) -> int:
    """Encoder frames of a clip that its windows may read; lengths of segments are in mel frames."""
    *full, last = layout.split(mel_frames)
    before = sum(segment.padded_frames for segment in full)
    if not layout.trim_audio_tokens:
        return (before + last.padded_frames) // MEL_FRAMES_PER_ENCODER_FRAME
    audio = before + min(last.padded_frames, last.audio_frames + MEL_FRAMES_PER_ENCODER_FRAME * _tail(layout))
    return -(-audio // MEL_FRAMES_PER_ENCODER_FRAME)  # rounded up


def _fingerprint(module: PreTrainedModel, settings: str) -> str:
    config = module.config.to_diff_dict()
    for name in ORIGIN_FIELDS:
        config.pop(name, None)
    digest = hashlib.sha256(f"{settings} {json.dumps(config, sort_keys=True)}".encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _is_readable(file: Path) -> bool:
    """Whether a file has states and a length that fits them; any other is written anew."""
    try:
        with safe_open(file, "pt") as content:
            length = (content.metadata() or {}).get("mel_frames", "")
            shape = content.get_slice("states").get_shape()
    except (SafetensorError, OSError):
        return False
    return len(shape) == 2 and length.isdecimal() and int(length) <= MEL_FRAMES_PER_ENCODER_FRAME * shape[0]
