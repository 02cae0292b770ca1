"""Long clips: time and memory of reading a file into features, and of making audio tokens of features.

    python benchmarks/long_audio.py --minutes 30 --encoded-minutes 4 --against ../before

The memory is what a case takes beyond what the process held before.
"""

import argparse
import tempfile
from pathlib import Path

import soundfile
import torch
from sizes import SAMPLING_RATE, add_sizes, build_extractor, build_model, make_clips
from turns import Case, run_benchmark


def make_cases(args: argparse.Namespace) -> list[Case]:
    """Two cases on clips of so many minutes; the file is removed with the process."""
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "long.wav"
    (minute,) = make_clips([60.0])
    with soundfile.SoundFile(path, "w", SAMPLING_RATE, 1) as file:
        for _ in range(args.minutes):
            file.write(minute)
    model = build_model(args)
    extractor = build_extractor(model)
    (clip,) = make_clips([60.0 * args.encoded_minutes])
    features = extractor(clip, sampling_rate=SAMPLING_RATE).to(args.device)

    def extract() -> torch.Tensor:
        assert folder.name  # keeps the folder
        return extractor(str(path))["input_features"][0, :, ::100]

    def encode() -> torch.Tensor:
        return model.get_audio_features(**features).pooler_output

    cases = [Case(f"features of a file of {args.minutes} min", extract)]
    if args.encoded_minutes:
        cases.append(Case(f"audio tokens of {args.encoded_minutes} min", encode))
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--encoded-minutes", type=int, default=4)
    run_benchmark(parser, make_cases)


if __name__ == "__main__":
    main()
