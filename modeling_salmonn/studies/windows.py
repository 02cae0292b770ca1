"""Which window length suits the connector: lengths compared at equal training.

For each length a fresh connector, the same one for all, is trained by the alignment warm start on the same batches of
cached encoder states; the language model is never run. What it then reads greedily is compared with what is said.

```
OUTPUT/0.12.json                                   figures of one length
       windows.json  windows.png  windows.md       of all of them
```
"""

import random
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from modeling_salmonn.configuration_salmonn import SalmonnConfig
from modeling_salmonn.data.alignment_labels import needed_tokens
from modeling_salmonn.data.encoder_cache import EncoderCache
from modeling_salmonn.data.files import make_output_folder, read_record, write_bytes, write_json
from modeling_salmonn.data.rows import Row
from modeling_salmonn.evaluation.harness import content_hash
from modeling_salmonn.hub.assembly import load_config
from modeling_salmonn.hub.devices import AUTO, resolve_device
from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.processing.audio_segments_salmonn import MEL_FRAMES_PER_SECOND
from modeling_salmonn.processing.feature_extraction_salmonn import SalmonnFeatureExtractor
from modeling_salmonn.processing.processing_salmonn import SalmonnProcessor
from modeling_salmonn.studies.plots import figure_style, make_panels, require_matplotlib, save_figure
from modeling_salmonn.training.alignment import AlignmentHead, ConnectorAligner
from modeling_salmonn.training.stages import part_of
from modeling_salmonn.training.warm_start import TARGETS, AlignmentCollator, AlignmentTrainer


NAME = "windows"
SPOKEN = TARGETS[0]
PANEL_WIDTH, PANEL_HEIGHT = 5.2, 3.4  # inches
HEAD = ("window", "audio tokens per second", "word error rate", "loss", "too fast", "time per step")

HOW_TO_READ = """\
Each length trained a fresh connector, with the same first weights, for {steps} steps of {batch_size} clips in the
same order; windows do not overlap, and training shifts them by up to one window, so that long ones also lose more of
a clip's beginning. Longer windows give fewer audio tokens, and so a cheaper language model, but each token has to
carry more than a word piece: the lengths to consider are the longest ones before the error rate climbs. The error
rate is that of reading each token alone, greedily, as a word piece; near 100 % the connector has hardly begun to
read, and it takes more steps to tell lengths apart. A clip that is too fast has more word pieces than windows, so
that no connector could spell it; its loss counts as zero. Early in training long windows have lower losses besides,
since there are fewer to get wrong: the error rate decides, and losses only rank lengths of about equal error rate
with hardly any clip too fast. The time per step is that of training the connector on this machine, without the
language model and without reading the cache; it tells something if nothing else ran. All this measures the connector
alone, not the answers of the whole model, which may well make sense of tokens that hold more than a word piece.
"""


@dataclass(frozen=True)
class WindowSettings:
    """How the connector of each length is trained.

    Args:
        steps: optimiser steps.
        batch_size: clips in each.
        learning_rate: highest one; cosine after a short warm-up.
        seed: of the first weights and of the batches.

    Raises:
        ValueError: if a number is not positive.
    """

    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")


@dataclass(frozen=True)
class WindowFigures:
    """Figures of one length, on the clips to evaluate on.

    Args:
        window_seconds: the length.
        tokens_per_second: audio tokens for each second of audio.
        word_error_rate: of the greedy reading.
        loss: mean alignment loss of a target token.
        too_fast: share of the clips with more word pieces than windows.
        seconds_per_step: median time of a training step, without reading the cache.
    """

    window_seconds: float
    tokens_per_second: float
    word_error_rate: float
    loss: float
    too_fast: float
    seconds_per_step: float

    def line(self) -> list[str]:
        """The line of the table."""
        return [
            f"{self.window_seconds:g} s",
            f"{self.tokens_per_second:.1f}",
            f"{self.word_error_rate:.1%}",
            f"{self.loss:.3f}",
            f"{self.too_fast:.1%}",
            f"{1000 * self.seconds_per_step:.0f} ms",
        ]


def compare_windows(
    model: str,
    windows: Sequence[float],
    train_rows: Sequence[Row],
    eval_rows: Sequence[Row],
    feature_cache: Path,
    output: Path,
    settings: WindowSettings | None = None,
    device: str = AUTO,
) -> list[WindowFigures]:
    """Train and measure the connector with each window length; one that an earlier call has finished is not trained.

    Args:
        model: folder or Hub id of a SALMONN, of which configuration, bases and tokenizer are used.
        windows: lengths in seconds; the stride is the same.
        train_rows: rows with `alignment_text` or `alignment_words`; others are left out.
        eval_rows: rows with `alignment_text`; others are left out.
        feature_cache: folder for the encoders' outputs.
        output: folder for the figures.
        settings: how to train.
        device: see `resolve_device`.

    Returns:
        The figures, by increasing length.

    Raises:
        ValueError: for lengths that the model cannot have or that are the same in frames, and if rows are missing or
            a clip cannot be read.
        ImportError: if matplotlib is missing.
    """
    require_matplotlib()
    settings = settings or WindowSettings()
    configs = window_configs(load_config(model), windows)
    batches = draw_batches(clips_with(train_rows, TARGETS, "train on"), settings)
    spoken = clips_with(eval_rows, (SPOKEN,), "evaluate on")
    record = {"model": model, "settings": asdict(settings)}
    record |= {"train": content_hash(batches), "eval": content_hash(spoken)}
    files = {window: output / f"{window:g}.json" for window in configs}
    missing = [window for window, file in files.items() if finished_figures(file, record) is None]
    if missing:
        make_output_folder(output)
        bases, processor = load_bases(model), SalmonnProcessor.from_pretrained(model)
        for window in tqdm(missing, desc="Window lengths", disable=None):
            fresh = fresh_model(configs[window], bases, settings.seed).to(resolve_device(device))
            cache = EncoderCache(feature_cache, fresh, window_extractor(processor, window))
            trained = train_window(fresh, cache, processor.tokenizer, batches, spoken, settings)
            write_json(files[window], {"record": record, "figures": asdict(trained)})
    found = [figures for file in files.values() if (figures := finished_figures(file, record)) is not None]
    write_json(output / f"{NAME}.json", record | {NAME: [asdict(figures) for figures in found]})
    write_bytes(output / f"{NAME}.md", windows_report(model, found, len(spoken), settings).encode())
    save_figure(draw_windows(found), output / f"{NAME}.png")
    return found


def window_configs(config: SalmonnConfig, windows: Sequence[float]) -> dict[float, SalmonnConfig]:
    """A copy of a configuration for each length, by increasing length.

    Raises:
        ValueError: if there is no length, one cannot be, or two are the same in frames.
    """
    if not windows:
        raise ValueError("There are no window lengths to compare; give some, such as 0.06, 0.12 and 0.24.")
    configs: dict[float, SalmonnConfig] = {}
    for window in sorted(set(windows)):
        configs[window] = deepcopy(config)
        configs[window].window_seconds = configs[window].stride_seconds = window
    frames = {window: changed.window_frames for window, changed in configs.items()}
    for (first, count), (second, other) in pairwise(frames.items()):
        if count == other:
            raise ValueError(f"Windows of {first} and {second} s are both {count} frames of 0.02 s; leave one out.")
    return configs


def window_extractor(processor: SalmonnProcessor, window: float) -> SalmonnFeatureExtractor:
    """A copy of the model's extractor for windows of a length."""
    extractor = deepcopy(processor.feature_extractor)
    extractor.window_seconds = extractor.stride_seconds = window
    return extractor


def clips_with(rows: Sequence[Row], targets: Sequence[str], purpose: str) -> list[Row]:
    """The clips in files that have one of some targets, once each, with nothing but path and targets.

    Raises:
        ValueError: if there are none.
    """
    clips = {
        row["path"]: {name: row[name] for name in ("path", *TARGETS) if row.get(name)}
        for row in rows
        if isinstance(row.get("path"), str) and not row.get("expand_wav") and any(row.get(name) for name in targets)
    }
    if not clips:
        raise ValueError(
            f"There is nothing to {purpose}: none of {len(rows)} rows has a clip with {' or '.join(targets)}."
        )
    return list(clips.values())


def draw_batches(clips: Sequence[Row], settings: WindowSettings) -> list[Row]:
    """The clips of all batches one after the other: each as often as the others, in random order."""
    rng = random.Random(settings.seed)
    needed = settings.steps * settings.batch_size
    rounds = -(-needed // len(clips))
    return [clip for _ in range(rounds) for clip in rng.sample(clips, len(clips))][:needed]


def load_bases(model: str) -> dict[str, torch.Tensor]:
    """The weights of a model that no stage trains: encoders and language model."""
    loaded = SalmonnForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in loaded.state_dict().items()
        if part_of(name) not in ("connector", "lora")
    }


def fresh_model(
    config: SalmonnConfig, bases: Mapping[str, torch.Tensor], seed: int
) -> SalmonnForConditionalGeneration:
    """Bases with a random connector between them, the same one for the same seed."""
    torch.manual_seed(seed)
    model, _ = SalmonnForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=dict(bases), output_loading_info=True, dtype=torch.float32
    )
    return model


class Stopwatch(TrainerCallback):
    """Times the steps of a training, without what reads their batches."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.start = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(perf_counter() - self.start)


def train_window(
    model: SalmonnForConditionalGeneration,
    cache: EncoderCache,
    tokenizer: PreTrainedTokenizerBase,
    batches: Sequence[Row],
    eval_clips: Sequence[Row],
    settings: WindowSettings,
) -> WindowFigures:
    """Train the connector of a model by the alignment warm start, and measure it.

    Args:
        model: with a fresh connector, which is trained in place.
        cache: the encoders' outputs; clips that it lacks are encoded.
        tokenizer: the language model's.
        batches: clips of all batches one after the other.
        eval_clips: clips to measure on.
        settings: how to train.

    Raises:
        ValueError: if a clip cannot be read.
    """
    require_readable(cache, [clip["path"] for clip in (*batches, *eval_clips)])
    aligner = ConnectorAligner(model, AlignmentHead(model.get_input_embeddings().weight))
    aligner.requires_grad_(True)
    stopwatch = Stopwatch()
    with TemporaryDirectory() as unused:  # a trainer wants a folder, but there is nothing to keep
        trainer = AlignmentTrainer(
            model=aligner,
            args=training_arguments(unused, settings, model.device.type == "cpu"),
            data_collator=AlignmentCollator(cache, tokenizer),
            train_dataset=batches,
            eval_dataset=eval_clips,
            callbacks=[stopwatch],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    torch.manual_seed(settings.seed)  # the loss draws word pieces that compete: the same ones for all lengths
    metrics = trainer.evaluate()
    layout = model.config.audio_layout
    frames = [cache.get(clip["path"])[1] for clip in eval_clips]
    tokens = [layout.num_audio_tokens(length) for length in frames]
    fast = [count < needed for count, needed in zip(tokens, needed_tokens(eval_clips, tokenizer), strict=True)]
    return WindowFigures(
        window_seconds=model.config.window_seconds,
        tokens_per_second=sum(tokens) / (sum(frames) / MEL_FRAMES_PER_SECOND),
        word_error_rate=metrics["eval_wer"],
        loss=metrics["eval_loss"],
        too_fast=sum(fast) / len(fast),
        seconds_per_step=median(stopwatch.seconds),
    )


def training_arguments(folder: str, settings: WindowSettings, use_cpu: bool) -> TrainingArguments:
    """The arguments of the warm start."""
    return TrainingArguments(
        output_dir=folder,
        use_cpu=use_cpu,
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        train_sampling_strategy="sequential",
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        weight_decay=0.01,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=settings.seed,
        remove_unused_columns=False,
        label_names=[],
    )


def require_readable(cache: EncoderCache, clips: Sequence[str]) -> None:
    """Encode the clips that are not in the cache.

    Raises:
        ValueError: if any of them cannot be read.
    """
    for clip, error in cache.encode(clips):
        raise ValueError(f"{clip} cannot be read: {error}; repair it or drop it.")


def finished_figures(file: Path, record: Mapping[str, Any]) -> WindowFigures | None:
    """The figures of an earlier call that trained in the same way; `None` if there was none."""
    mend = "delete it to train this length anew"
    found = read_record(file, {"record": record}, mend)
    if found is None:
        return None
    try:
        return WindowFigures(**found["figures"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} has no figures that can be read ({error}); {mend}.") from error


def windows_report(model: str, found: Sequence[WindowFigures], clips: int, settings: WindowSettings) -> str:
    """The comparison in Markdown: the table and how to read it."""
    lines = [HEAD, ["---"] * len(HEAD), *(figures.line() for figures in found)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    reading = HOW_TO_READ.format(steps=settings.steps, batch_size=settings.batch_size)
    return f"Window lengths for `{model}`, measured on {clips} clips\n\n{table}\n{reading}"


@figure_style()
def draw_windows(found: Sequence[WindowFigures]) -> Any:
    """Error rate and loss, and beside them tokens and time, against the window length."""
    lengths = [figures.window_seconds for figures in found]
    panels = [
        {
            "word error rate": [figures.word_error_rate for figures in found],
            "loss": [figures.loss for figures in found],
        },
        {
            "audio tokens per second": [figures.tokens_per_second for figures in found],
            "seconds per step": [figures.seconds_per_step for figures in found],
        },
    ]
    figure, axes = make_panels(len(panels), len(panels), PANEL_WIDTH, PANEL_HEIGHT)
    for left, panel in zip(axes, panels, strict=True):
        for index, (name, values) in enumerate(panel.items()):
            axis = left.twinx() if index else left
            axis.grid(visible=not index)
            axis.spines.right.set_visible(bool(index))
            axis.plot(lengths, values, color=f"C{index}", marker="os"[index])
            axis.set_ylabel(name, color=f"C{index}")
            axis.set_ylim(0, 1.05 * max(values) or 1)
        left.set(xlabel="window (s)", xscale="log")
        left.set_xticks(lengths, [f"{length:g}" for length in lengths])
        left.minorticks_off()
    return figure
