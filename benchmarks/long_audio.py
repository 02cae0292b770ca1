"""Long clips: time and memory of reading a file into features, and of making audio tokens of features.

    python benchmarks/long_audio.py --minutes 30 --encoded-minutes 4 --against ../before
    python benchmarks/long_audio.py --encoded-minutes 30 --max-encoder-batch 1

The memory is what a case takes beyond what the process held before; the model is made in between.
"""

import argparse
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

import soundfile
import torch
from operations import beats_flop, qformer_flop, speech_flop
from sizes import SAMPLING_RATE, add_sizes, build_config, build_extractor, build_model, make_clips
from turns import Case, run_benchmark


class Workload:
    """A file of so many minutes, and the features of fewer."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.extractor = args, build_extractor(build_config(args))
        self.folder = tempfile.TemporaryDirectory()  # removed with this object
        self.path = Path(self.folder.name) / "long.wav"
        (minute,) = make_clips([60.0])
        with soundfile.SoundFile(self.path, "w", SAMPLING_RATE, 1) as file:
            for _ in range(args.minutes):
                file.write(minute)

    @cached_property
    def model(self) -> Any:
        model = build_model(self.args)
        if self.args.max_encoder_batch is not None:
            model.config.max_encoder_batch = self.args.max_encoder_batch
        return model

    @cached_property
    def features(self) -> Any:
        (clip,) = make_clips([60.0 * self.args.encoded_minutes])
        return self.extractor(clip, sampling_rate=SAMPLING_RATE).to(self.args.device)

    def extract(self) -> torch.Tensor:
        return self.extractor(self.path)["input_features"][0, :, ::100]

    def prepare(self) -> torch.Tensor:
        """Make the model and its inputs, once."""
        self.model.eval()
        return self.features["input_features"][0, :, ::100]

    def encode(self) -> torch.Tensor:
        return self.model.get_audio_features(**self.features).pooler_output

    def encoding_flop(self) -> float:
        """Of all full segments of the encoded minutes: both encoders, Q-Former and projection."""
        config = build_config(self.args)
        layout = config.audio_layout
        segments = layout.split(60 * 100 * self.args.encoded_minutes)  # mel frames of 10 ms
        frames = [segment.padded_frames for segment in segments]
        flop = sum(speech_flop(config.speech_config, count) for count in frames)
        if config.audio_config is not None:
            flop += sum(beats_flop(config.audio_config, count) for count in frames)
        windows = sum(layout.num_windows(segment) for segment in segments)
        return flop + qformer_flop(config, windows, layout.window_frames)

    def cases(self) -> list[Case]:
        return [
            Case(f"features of a file of {self.args.minutes} min", self.extract),
            Case("making the model", self.prepare),
            Case(f"audio tokens of {self.args.encoded_minutes} min", self.encode, self.encoding_flop()),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--encoded-minutes", type=int, default=4)
    parser.add_argument("--max-encoder-batch", type=int, help="segments encoded at once, instead of the model's own")
    run_benchmark(parser, lambda args: Workload(args).cases())


if __name__ == "__main__":
    main()
