"""Where inference time goes: one row per stage, from the audio file to the last new token.

    python benchmarks/inference.py --batch 4 --segments 1 2

- a random model of real sizes; the stages are the package's own modules
- operations are counted from shapes, so a row shows how far its stage is from the matrix product of this machine
- stages and peak measurements take turns, so that other load on the machine falls on all of them alike
"""

import argparse
import json
import math
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModel, PreTrainedConfig, WhisperConfig

from modeling_salmonn import BeatsConfig, SalmonnConfig, SalmonnFeatureExtractor, SalmonnForConditionalGeneration
from modeling_salmonn.audio_segments_salmonn import ENCODER_FRAMES_PER_SECOND


FILE_RATE = 44100  # stereo files of this rate are resampled to the encoders' 16 kHz
TEXT_PROMPT_TOKENS = 32  # instruction and template around the audio tokens
PEAK_SIZES = (512, 1024, 2048)  # square matrix products, about as large as those of the encoders
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

SPEECH_FIELDS = ("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim")
SPEECH = {
    "tiny": (384, 4, 6, 1536), "base": (512, 6, 8, 2048), "small": (768, 12, 12, 3072),
    "large-v2": (1280, 32, 20, 5120),
}  # fmt: skip
TEXT_FIELDS = (
    "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "intermediate_size", "vocab_size", "tie_word_embeddings",
)  # fmt: skip
TEXT = {
    "smollm2-135m": ("llama", 576, 30, 9, 3, 1536, 49152, True),
    "qwen2-0.5b": ("qwen2", 896, 24, 14, 2, 4864, 151936, True),
    "llama-7b-like": ("llama", 4096, 32, 32, 32, 11008, 32000, False),
}


@dataclass(frozen=True)
class Stage:
    """A step of inference: how to run it, its floating-point operations and their type, the tokens it handles."""

    name: str
    run: Callable[[], Any]
    flop: float = 0.0
    dtype: str = "float32"
    tokens: int = 0


@dataclass(frozen=True)
class Row:
    """Result of a stage; `peak_memory_mb` is the high-water mark of the process after the stage first ran."""

    stage: str
    milliseconds: float
    gflop: float
    gflop_per_second: float
    fraction_of_peak: float
    tokens_per_second: float
    peak_memory_mb: float


def layer_flop(length: int, width: int, expanded: int) -> float:
    """Encoder layer: q, k, v, out are 2 T D^2 each; scores and values 2 T^2 D each; feed-forward two times 2 T D F."""
    return 8 * length * width**2 + 4 * length**2 * width + 4 * length * width * expanded


def spectrum_flop(frames: int, fft_samples: int, num_bins: int) -> float:
    """Per frame a real FFT, 5/2 N log2 N, and the filter bank, 2 (N/2 + 1) bins."""
    return frames * (2.5 * fft_samples * math.log2(fft_samples) + 2 * (fft_samples // 2 + 1) * num_bins)


def speech_flop(config: WhisperConfig, frames: int) -> float:
    """Two convolutions of kernel 3 (2 * 3 * C_in * C_out per frame, the second at half the rate) and the layers."""
    width, length = config.d_model, frames // 2
    convolutions = 6 * frames * config.num_mel_bins * width + 6 * length * width**2
    return convolutions + config.encoder_layers * layer_flop(length, width, config.encoder_ffn_dim)


def beats_flop(config: BeatsConfig, frames: int) -> float:
    """Patches (2 * 16^2 * E), projection (2 E D), position convolution (2 K D^2 / groups), gate (2 D * 8), layers."""
    width, patch, embedding = config.hidden_size, config.patch_size, config.patch_embed_size
    length = frames // patch * (config.num_mel_bins // patch)
    front = 2 * patch**2 * embedding + 2 * embedding * width
    positions = 2 * config.conv_pos_kernel * width**2 // config.conv_pos_groups
    layers = layer_flop(length, width, config.intermediate_size) + length * 16 * width
    return length * (front + positions) + config.num_hidden_layers * layers


def qformer_flop(config: SalmonnConfig, windows: int, window_frames: int) -> float:
    """Queries: 6 products of 2 Q D^2 and the feed-forward, frames: 2 products of 2 F E D, then the projection."""
    qformer, queries = config.qformer_config, config.qformer_config.num_query_tokens
    width, expanded = qformer.hidden_size, qformer.intermediate_size
    self_attention = 8 * queries * width**2 + 4 * queries**2 * width
    cross_attention = 4 * queries * width**2 + 4 * window_frames * width * (qformer.encoder_hidden_size + queries)
    layers = qformer.num_hidden_layers * (self_attention + cross_attention + 4 * queries * width * expanded)
    return windows * (layers + 2 * queries * width * config.text_config.hidden_size)


def text_flop(config: PreTrainedConfig, new: int, cached: int) -> float:
    """New tokens after a cache, with one position of logits; N, M: widths of the query heads and of the key heads."""
    width, head_dim = config.hidden_size, config.hidden_size // config.num_attention_heads
    query_width, key_width = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    projections = 4 * width * (query_width + key_width)  # q and out: 2 D N each; k and v: 2 D M each
    feed_forward = 6 * width * config.intermediate_size  # gate, up, down: 2 D F each
    pairs = new * cached + new * (new + 1) // 2  # causal; scores and values: 2 N each
    layers = config.num_hidden_layers * (new * (projections + feed_forward) + 4 * query_width * pairs)
    return layers + 2 * width * config.vocab_size


def build_model(args: argparse.Namespace) -> SalmonnForConditionalGeneration:
    text = dict(zip(TEXT_FIELDS, TEXT[args.text], strict=True))
    speech = dict(zip(SPEECH_FIELDS, SPEECH[args.speech], strict=True))
    config = SalmonnConfig(
        speech_config=speech | {"max_source_positions": args.seconds * ENCODER_FRAMES_PER_SECOND},
        audio_config={} if args.audio == "base" else None,
        text_config=text,
        audio_token_id=text["vocab_size"],  # beyond the table, as in converted models
        segment_seconds=args.seconds,
    )
    torch.manual_seed(0)
    return AutoModel.from_config(config, dtype=DTYPES[args.dtype]).eval()


class Workload:
    """One batch of clips, the inputs that each stage needs, and the stages."""

    def __init__(self, args: argparse.Namespace, model: SalmonnForConditionalGeneration, segments: int, folder: str):
        self.args, self.model, self.config = args, model, model.config
        self.num_segments, self.layout = args.batch * segments, model.config.audio_layout
        self.frames = self.layout.longest_segment  # all segments are full
        bins = self.config.audio_config.num_mel_bins if args.audio == "base" else 0
        self.extractor = SalmonnFeatureExtractor(num_fbank_bins=bins, segment_seconds=args.seconds)
        self.files = [_write_noise(folder, segments * args.seconds)] * args.batch

        clips = self.extractor.fetch_audio(self.files)
        self.waveforms = torch.from_numpy(np.concatenate(clips)).view(self.num_segments, -1)
        self.features = self.extractor(clips, self.extractor.sampling_rate)
        mel, _, *fbank = self.features.values()
        self.mel = torch.cat(mel.to(model.dtype).split(self.frames, dim=2))  # (segments, mel, frames)
        self.fbank = [values.view(self.num_segments, self.frames, *values.shape[2:]) for values in fbank]
        self._prepare_text(segments)

    def _prepare_text(self, segments: int) -> None:
        """Random windows, audio tokens, and ids around their placeholders."""
        tokens, text = self.layout.num_audio_tokens(segments * self.frames), self.config.text_config
        ids = torch.randint(0, text.vocab_size, (self.args.batch, TEXT_PROMPT_TOKENS))
        placeholders = torch.full((self.args.batch, tokens), self.config.audio_token_id)
        self.prompt = torch.cat([ids[:, :4], placeholders, ids[:, 4:]], dim=1)
        frames, width = self.layout.window_frames, self.config.qformer_config.encoder_hidden_size
        self.windows = torch.randn(self.args.batch * tokens, frames, width).to(self.model.dtype)  # one token a window
        self.audio_embeds = torch.randn(self.args.batch, tokens, text.hidden_size).to(self.model.dtype)

    def stages(self) -> list[Stage]:
        extractor, model, dtype = self.extractor, self.model.model, self.args.dtype
        (batch, prompt), new, text = self.prompt.shape, self.args.new_tokens, self.config.text_config
        log_mel = self.num_segments * spectrum_flop(self.frames, 400, extractor.feature_size)
        fbank = self.num_segments * spectrum_flop(self.frames, 512, extractor.num_fbank_bins)
        speech = self.num_segments * speech_flop(self.config.speech_config, self.frames)
        beats = self.num_segments * beats_flop(self.config.audio_config, self.frames) if self.fbank else 0.0
        qformer = qformer_flop(self.config, *self.windows.shape[:2])
        encoders, prefill = speech + beats + qformer, batch * text_flop(text, prompt, 0)
        decode = batch * sum(text_flop(text, 1, prompt + step) for step in range(new))
        stages = [
            Stage("read", lambda: extractor.fetch_audio(self.files)),
            Stage("log-mel", lambda: extractor._log_mel(self.waveforms), log_mel),
            Stage("fbank", lambda: extractor._normalised_fbank(self.waveforms), fbank),  # in float64
            Stage("Whisper encoder", lambda: model.speech_encoder(self.mel), speech, dtype),
            Stage("BEATs", lambda: model.audio_encoder(*self.fbank), beats, dtype),
            Stage("Q-Former", lambda: model.projector(model.qformer(self.windows)[0]), qformer, dtype),
            Stage("= audio tokens", lambda: self.model.get_audio_features(**self.features), encoders, dtype),
            Stage("prefill", self.prefill, prefill, dtype, batch * prompt),
            Stage("decode", self.decode, decode, dtype, batch * new),
        ]
        return [stage for stage in stages if self.fbank or stage.name not in ("fbank", "BEATs")]

    def prefill(self) -> None:
        output = self.model(self.prompt, audio_embeds=self.audio_embeds, use_cache=True, logits_to_keep=1)
        self.first_token, self.cache = output.logits.argmax(-1), output.past_key_values

    def decode(self) -> None:
        """Greedy search; the cache then forgets the new tokens, for the next round."""
        token = self.first_token
        for _ in range(self.args.new_tokens):
            token = self.model(token, past_key_values=self.cache, use_cache=True).logits.argmax(-1)
        self.cache.crop(-self.args.new_tokens)


def measure(stages: list[Stage], peaks: dict[str, float], repeats: int) -> list[Row]:
    """Warm up, then go round all stages `repeats` times; the peaks are measured before and after each round."""
    memory = []
    for stage in stages:
        stage.run()
        memory.append(_peak_memory_mb())
    seconds: list[list[float]] = [[] for _ in stages]
    measure_peaks(peaks)
    for _ in range(repeats):
        for stage, times in zip(stages, seconds, strict=True):
            times.append(_time(stage.run))
        measure_peaks(peaks)
    return [_row(*values, peaks) for values in zip(stages, map(statistics.median, seconds), memory, strict=True)]


def measure_peaks(best: dict[str, float]) -> None:
    """Raise `best`, the fastest matrix products so far in FLOP/s by type, by what the machine does now."""
    for name, dtype in DTYPES.items():
        for size in PEAK_SIZES:
            left = torch.ones(size, size, dtype=dtype)  # the right one transposed, as in linear layers
            seconds = min(_time(lambda: torch.matmul(left, left.T)) for _ in range(3))  # noqa: B023  called at once
            best[name] = max(best.get(name, 0.0), 2 * size**3 / seconds)
            if seconds > 0.2:  # a type without native instructions, larger products take too long
                break


def _row(stage: Stage, seconds: float, memory: float, peaks: dict[str, float]) -> Row:
    speed, tokens = stage.flop / seconds, stage.tokens / seconds
    return Row(stage.name, seconds * 1e3, stage.flop / 1e9, speed / 1e9, speed / peaks[stage.dtype], tokens, memory)


def _time(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _peak_memory_mb() -> float:
    maximum = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return maximum / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, KiB on Linux


def _write_noise(folder: str, seconds: int) -> str:
    path = f"{folder}/noise.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, (seconds * FILE_RATE, 2)), FILE_RATE)
    return path


def print_table(rows: list[Row], title: str, peaks: dict[str, float]) -> None:
    caption = ", ".join(f"{name} peak {speed / 1e9:.1f} GFLOP/s" for name, speed in peaks.items())
    table = Table("stage", title=title, caption=caption)
    formats = {"ms": ".1f", "GFLOP": ".2f", "GFLOP/s": ".1f", "of peak": ".0%", "tokens/s": ".1f", "peak MB": ".0f"}
    for header in formats:
        table.add_column(header, justify="right")
    for row in rows:
        name, *values = astuple(row)
        numbers = zip(values, formats.values(), strict=True)
        table.add_row(name, *(format(value, style) if value else "" for value, style in numbers))
    Console().print(table)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, nargs="+", default=[1], help="segments of a clip, one table for each")
    parser.add_argument("--seconds", type=int, default=30, help="length of a segment, all of it audio")
    parser.add_argument("--batch", type=int, default=1, help="clips, each with its own prompt")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--speech", choices=SPEECH, default="tiny")
    parser.add_argument("--audio", choices=("base", "none"), default="base")
    parser.add_argument("--text", choices=TEXT, default="smollm2-135m")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    model, runs = build_model(args), []
    for segments in args.segments:
        peaks: dict[str, float] = {}
        with tempfile.TemporaryDirectory() as folder:
            rows = measure(Workload(args, model, segments, folder).stages(), peaks, args.repeats)
        clips = f"{args.batch} x {segments} x {args.seconds} s"
        print_table(rows, f"{args.speech}, {args.audio}, {args.text}: {clips}, {args.threads} threads", peaks)
        runs.append({"segments": segments, "peak_flop_per_second": peaks, "rows": [asdict(row) for row in rows]})
    if args.json:
        settings = {name: value for name, value in vars(args).items() if name not in ("json", "segments")}
        args.json.write_text(json.dumps({"settings": settings, "runs": runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
