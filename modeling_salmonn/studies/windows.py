"""Which window length suits the connector: lengths compared at equal training.

For each length a fresh connector, the same one for all, is trained by the alignment warm start on the same batches of
cached encoder states; the language model is never run. What it then reads greedily is compared with what is said.

```
OUTPUT/settings.json  lengths.jsonl             what is trained on, and the scores of each length
       windows.json  windows.png  windows.md    all of them
```
"""

import random
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase, TrainerCallback

from modeling_salmonn.configuration_salmonn import SalmonnConfig
from modeling_salmonn.data.alignment_labels import needed_tokens
from modeling_salmonn.data.encoder_cache import EncoderCache
from modeling_salmonn.data.files import Journal, claim_folder
from modeling_salmonn.data.pictures import require_matplotlib
from modeling_salmonn.data.rows import Row
from modeling_salmonn.evaluation.harness import content_hash
from modeling_salmonn.hub.assembly import assemble_model, load_config
from modeling_salmonn.hub.devices import AUTO, resolve_device
from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.processing.audio_segments_salmonn import MEL_FRAMES_PER_SECOND
from modeling_salmonn.processing.feature_extraction_salmonn import SalmonnFeatureExtractor
from modeling_salmonn.processing.processing_salmonn import SalmonnProcessor
from modeling_salmonn.studies.plots import figure_style, make_panels, write_study
from modeling_salmonn.training.alignment import AlignmentHead
from modeling_salmonn.training.warm_start import TARGETS, alignment_arguments, clips_with_words, warm_start
from modeling_salmonn.weight_names_salmonn import part_of, plain_name


NAME, SETTINGS_FILE, LENGTHS_FILE = "windows", "settings.json", "lengths.jsonl"
SPOKEN = TARGETS[0]  # what a word error rate is of
PANEL_WIDTH, PANEL_HEIGHT = 5.2, 3.4  # inches
HEAD = ("window", "audio tokens per second", "word error rate", "loss", "too fast", "time per step")

HOW_TO_READ = """\
Each length trained a fresh connector, with the same first weights, for {steps} steps of {batch_size} clips in the
same order. Longer windows give fewer audio tokens, and so a cheaper language model, but each token has to carry more
than a word piece: consider the longest ones before the error rate climbs. The error rate is that of reading each token
alone, greedily, as a word piece; near 100 % the connector has hardly begun to read, and needs more steps to tell
lengths apart. A clip that is too fast has more word pieces than windows, so that no connector could spell it; its loss
counts as zero. Losses only rank lengths of about equal error rate with hardly any clip too fast. The time per step is
that of training the connector on this machine, without the language model and without reading the cache. All this
measures the connector alone, not the answers of the whole model, which may make sense of tokens that hold more than a
word piece.
"""


@dataclass(frozen=True)
class WindowSettings:
    """How the connector of each length is trained."""

    steps: int = 1000
    batch_size: int = 64  # clips
    learning_rate: float = 1e-3  # highest one; cosine after a short warm-up
    seed: int = 0  # of the first weights and of the batches

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")


@dataclass(frozen=True)
class WindowScores:
    """Scores of one length, on the clips to evaluate on."""

    window_seconds: float
    tokens_per_second: float  # audio tokens for each second of audio
    word_error_rate: float  # of the greedy reading
    loss: float  # mean alignment loss of a target token
    too_fast: float  # share of the clips with more word pieces than windows
    seconds_per_step: float  # median, without reading the cache

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
) -> list[WindowScores]:
    """Train and measure the connector with each window length; one that an earlier call has finished is not trained.

    Args:
        model: folder or Hub id of a SALMONN, of which configuration, bases and tokenizer are used.
        windows: lengths in seconds; the stride is the same.
        train_rows: rows with `alignment_text` or `alignment_words`; others are left out.
        eval_rows: rows with `alignment_text`; others are left out.
        feature_cache: folder for the encoders' outputs.
        output: folder for the scores.
        settings, device: how and where to train.

    Returns:
        The scores, by increasing length.
    """
    require_matplotlib()
    settings = settings or WindowSettings()
    configs = window_configs(load_config(model), windows)
    batches = draw_batches(clips_with(train_rows, TARGETS, "train on"), settings)
    spoken = clips_with(eval_rows, (SPOKEN,), "evaluate on")
    record = {"model": model, "settings": asdict(settings)}
    claim_folder(output, SETTINGS_FILE, record | {"train": content_hash(batches), "eval": content_hash(spoken)})
    kinds = {field.name: (int, float) for field in fields(WindowScores)}
    journal = Journal(output / LENGTHS_FILE, ("window_seconds",), kinds)
    missing = [window for window in configs if (window,) not in journal.by_key]
    if missing:
        bases, processor = load_bases(model), SalmonnProcessor.from_pretrained(model)
        for window in tqdm(missing, desc="Window lengths", disable=None):
            fresh = fresh_model(configs[window], bases, settings.seed).to(resolve_device(device))
            cache = EncoderCache(feature_cache, fresh, window_extractor(processor, window))
            trained = train_window(fresh, cache, processor.tokenizer, batches, spoken, settings)
            journal.append(asdict(trained))
    found = [WindowScores(**journal.by_key[window,]) for window in configs]
    results = record | {NAME: [asdict(scores) for scores in found]}
    write_study(output, NAME, results, windows_report(model, found, len(spoken), settings), draw_windows(found))
    return found


def window_configs(config: SalmonnConfig, windows: Sequence[float]) -> dict[float, SalmonnConfig]:
    """A copy of a configuration for each length, by increasing length; no two may be the same in frames."""
    if not windows:
        raise ValueError("There are no window lengths to compare; give some, such as 0.06, 0.12 and 0.24.")
    configs: dict[float, SalmonnConfig] = {}
    for window in sorted(set(windows)):
        configs[window] = deepcopy(config)
        configs[window].window_seconds = configs[window].stride_seconds = window
    frames = {window: changed.window_frames for window, changed in configs.items()}  # refuses what cannot be
    for first, second in pairwise(configs):
        if frames[first] == frames[second]:
            both = f"{frames[first]} frames of 0.02 s"
            raise ValueError(f"Windows of {first} and {second} s are both {both}; leave one out.")
    return configs


def window_extractor(processor: SalmonnProcessor, window: float) -> SalmonnFeatureExtractor:
    """A copy of the model's extractor for windows of a length."""
    extractor = deepcopy(processor.feature_extractor)
    extractor.window_seconds = extractor.stride_seconds = window
    return extractor


def clips_with(rows: Sequence[Row], targets: Sequence[str], purpose: str) -> list[Row]:
    """The clips in files that have one of some targets, at least one."""
    clips = clips_with_words(rows, targets)
    if not clips:
        needed = " or ".join(targets)
        raise ValueError(f"There is nothing to {purpose}: none of {len(rows)} rows has a clip with {needed}.")
    return clips


def draw_batches(clips: Sequence[Row], settings: WindowSettings) -> list[Row]:
    """The clips of all batches one after the other: each as often as the others, in random order."""
    rng = random.Random(settings.seed)
    needed = settings.steps * settings.batch_size
    drawn: list[Row] = []
    while len(drawn) < needed:
        drawn += rng.sample(clips, len(clips))  # an epoch
    return drawn[:needed]


def load_bases(model: str) -> dict[str, torch.Tensor]:
    """The weights of a model that no stage trains: encoders and language model."""
    loaded = SalmonnForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
    bases = {}
    for name, tensor in loaded.state_dict().items():
        if part_of(name) not in ("connector", "lora"):
            bases[plain_name(name)] = tensor
    return bases


def fresh_model(
    config: SalmonnConfig, bases: Mapping[str, torch.Tensor], seed: int
) -> SalmonnForConditionalGeneration:
    """Bases with a random connector between them, the same one for the same seed."""
    torch.manual_seed(seed)  # no weight of the connector depends on the window's length
    return assemble_model(config, dict(bases), torch.float32)


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
) -> WindowScores:
    """Train the fresh connector of a model by the alignment warm start, in place, and measure it.

    The batches' clips come one after the other; those that the cache lacks are encoded.
    """
    for clip, error in cache.encode([row["path"] for row in (*batches, *eval_clips)]):
        raise ValueError(f"{clip} cannot be read: {error}; repair it or drop it.")
    head = AlignmentHead(model.get_input_embeddings().weight)
    stopwatch = Stopwatch()
    with TemporaryDirectory() as unused:  # a trainer needs a folder, but there is nothing to keep
        arguments = alignment_arguments(
            unused,
            settings.batch_size,
            settings.learning_rate,
            settings.seed,
            max_steps=settings.steps,
            train_sampling_strategy="sequential",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=model.device.type == "cpu",
        )
        trainer = warm_start(model, head, cache, tokenizer, batches, eval_clips, arguments, [stopwatch])
    torch.manual_seed(settings.seed)  # the loss draws word pieces that compete: the same ones for all lengths
    metrics = trainer.evaluate()
    layout = model.config.audio_layout
    frames = np.array([cache.get(clip["path"])[1] for clip in eval_clips])  # mel frames
    tokens = np.array(list(map(layout.num_audio_tokens, frames.tolist())))
    return WindowScores(
        window_seconds=model.config.window_seconds,
        tokens_per_second=float(tokens.sum() / frames.sum() * MEL_FRAMES_PER_SECOND),
        word_error_rate=metrics["eval_wer"],
        loss=metrics["eval_loss"],
        too_fast=float((tokens < needed_tokens(eval_clips, tokenizer)).mean()),
        seconds_per_step=median(stopwatch.seconds),
    )


def windows_report(model: str, found: Sequence[WindowScores], clips: int, settings: WindowSettings) -> str:
    """The comparison in Markdown: the table and how to read it."""
    table = "".join(
        f"| {' | '.join(line)} |\n" for line in (HEAD, ["---"] * len(HEAD), *map(WindowScores.line, found))
    )
    reading = HOW_TO_READ.format(steps=settings.steps, batch_size=settings.batch_size)
    return f"Window lengths for `{model}`, measured on {clips} clips\n\n{table}\n{reading}"


@figure_style()
def draw_windows(found: Sequence[WindowScores]) -> Any:
    """Error rate and loss, and beside them tokens and time, against the window length."""
    lengths = [scores.window_seconds for scores in found]
    panels = (("word_error_rate", "loss"), ("tokens_per_second", "seconds_per_step"))
    figure, axes = make_panels(len(panels), len(panels), PANEL_WIDTH, PANEL_HEIGHT)
    for left, names in zip(axes, panels, strict=True):
        for index, name in enumerate(names):
            values = [getattr(scores, name) for scores in found]
            axis = left.twinx() if index else left
            axis.grid(visible=not index)
            axis.spines.right.set_visible(bool(index))
            axis.plot(lengths, values, color=f"C{index}", marker="os"[index])
            axis.set_ylabel(name.replace("_", " "), color=f"C{index}")
            axis.set_ylim(0, 1.05 * max(values) or 1)  # nothing but zeros would have no height
        left.set(xlabel="window (s)", xscale="log")
        left.set_xticks(lengths, [f"{length:g}" for length in lengths])
        left.minorticks_off()
    return figure
