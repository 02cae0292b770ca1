"""Runs the alignment warm start: the connector alone, with plain `Trainer`, on cached encoder states."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import jiwer
import torch
from safetensors.torch import load_file, save
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from modeling_salmonn.data.alignment_labels import alignment_labels
from modeling_salmonn.data.encoder_cache import EncoderCache, is_file_clip, pad_states
from modeling_salmonn.data.files import write_bytes
from modeling_salmonn.data.sampling import MixtureSampler
from modeling_salmonn.data.word_pieces import WordPieces
from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.training.alignment import AlignmentHead, ConnectorAligner
from modeling_salmonn.training.arguments import SalmonnTrainingArguments
from modeling_salmonn.training.checkpoints import ALIGNMENT_FOLDER, MarkingTrainer, last_complete_checkpoint


FINISHED_FILE = "connector.safetensors"
TARGETS = ("alignment_text", "alignment_words")


class AlignmentCollator:
    """Cached states of clips with the targets of the alignment loss."""

    def __init__(self, cache: EncoderCache, tokenizer: PreTrainedTokenizerBase, pieces: WordPieces | None = None):
        self.cache = cache
        self.tokenizer = tokenizer
        self.pieces = pieces

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """`encoder_hidden_states`, `input_features_mask`, `alignment_labels`, `bag_labels`."""
        inputs = pad_states([self.cache.get(row["path"]) for row in rows])
        return inputs | alignment_labels(rows, self.tokenizer, self.pieces)


class ClipSampler(MixtureSampler):
    """Draws as many clips as there are in an epoch, by their weights: with equal ones each comes once."""

    def __init__(self, weights: Sequence[float], seed: int):
        super().__init__(["clips"] * len(weights), {"clips": 1.0}, 1, weights, seed=seed)

    def __iter__(self) -> Iterator[Any]:
        yield from self.epoch_rows().tolist()


class AlignmentTrainer(MarkingTrainer):
    """`Trainer` for a `ConnectorAligner` that also evaluates the word error rate of its greedy reading."""

    data_collator: AlignmentCollator
    model: Any

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.train_sampling_strategy != "random":  # the clips come in an order of their own
            return super()._get_train_sampler(train_dataset)
        clips = self.train_dataset if train_dataset is None else train_dataset
        return ClipSampler([clip.get("weight", 1.0) for clip in clips], self.args.seed)

    def evaluate(self, eval_dataset: Any = None, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Mean loss and word error rate (CTC without a language model)."""
        rows = eval_dataset if eval_dataset is not None else self.eval_dataset
        aligner = self.accelerator.unwrap_model(self.model).eval()
        losses: list[float] = []
        read: list[list[int]] = []
        for batch in DataLoader(rows, self.args.eval_batch_size, collate_fn=self.data_collator):
            inputs = {name: value.to(self.args.device) for name, value in batch.items()}
            with torch.no_grad():
                output = aligner(**inputs)
            losses.append(float(output["loss"]))
            read += aligner.read(output["audio_tokens"], output["token_counts"])
        metrics = {f"{metric_key_prefix}_loss": fmean(losses)}
        spoken, heard = [], []
        for row, ids in zip(rows, read, strict=True):
            if row.get("alignment_text"):  # clips without words are measured by the loss alone
                spoken.append(_plain(row["alignment_text"]))
                heard.append(_plain(self.data_collator.tokenizer.decode(ids)))
        if spoken:
            metrics[f"{metric_key_prefix}_wer"] = jiwer.wer(spoken, heard)
        self.log(metrics)
        return metrics


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def warm_start_stage(
    arguments: SalmonnTrainingArguments,
    model: SalmonnForConditionalGeneration,
    head: AlignmentHead,
    cache: EncoderCache,
    tokenizer: PreTrainedTokenizerBase,
    train_rows: Iterable[Mapping[str, Any]],
    eval_rows: Iterable[Mapping[str, Any]],
) -> None:
    """The warm start that the arguments of a stage ask for, before the stage's own training; model and head in place.

    With `resume_from_checkpoint` it resumes where it was; one that was finished is read from the output folder. Of the
    rows, which may be of any task, those with the words of a clip are taken, once for each clip and by its `weight`.
    """
    folder = Path(str(arguments.output_dir)) / ALIGNMENT_FOLDER
    finished = folder / FINISHED_FILE
    if arguments.resume_from_checkpoint and finished.is_file():
        ConnectorAligner(model, head).load_state_dict(load_file(finished))
        return
    finished.unlink(missing_ok=True)
    train_clips, eval_clips = clips_with_words(train_rows), clips_with_words(eval_rows)
    if not train_clips:
        raise ValueError(f"alignment_epochs needs rows with {' or '.join(TARGETS)}; add them, or set it to 0.")
    checkpoint = last_complete_checkpoint(folder) if arguments.resume_from_checkpoint else None
    own = alignment_arguments(
        folder,
        arguments.alignment_batch_size,
        arguments.alignment_learning_rate,
        arguments.seed,
        num_train_epochs=arguments.alignment_epochs,
        logging_steps=arguments.logging_steps,
        eval_strategy="epoch" if eval_clips else "no",
        save_steps=arguments.save_steps,
        save_total_limit=2,
        report_to=arguments.report_to,
        disable_tqdm=arguments.disable_tqdm,
        use_cpu=arguments.use_cpu,
        bf16=arguments.bf16,
        resume_from_checkpoint=str(checkpoint) if checkpoint else None,
    )
    trainer = warm_start(model, head, cache, tokenizer, train_clips, eval_clips, own)
    if arguments.should_save:
        write_bytes(finished, save({name: value.contiguous() for name, value in trainer.model.state_dict().items()}))


def clips_with_words(rows: Iterable[Mapping[str, Any]], targets: Sequence[str] = TARGETS) -> list[dict[str, Any]]:
    """The clips that have one of some targets, once each, with nothing but path, targets and weight.

    What several rows tell of a clip is put together; where they differ, the last one counts. Clips that are joined,
    lie within a table or behind a URL are left out: the cache holds single files.
    """
    clips: dict[str, dict[str, Any]] = {}
    for row in rows:
        path: Any = row.get("path")
        is_single_file = is_file_clip(path) and not row.get("expand_wav")
        if is_single_file and any(row.get(name) for name in targets):
            told = {name: row[name] for name in ("path", *TARGETS, "weight") if row.get(name) not in (None, "")}
            clips[path] = clips.get(path, {}) | told
    return list(clips.values())


def alignment_arguments(
    folder: str | Path, batch_size: int, learning_rate: float, seed: int, **others: Any
) -> TrainingArguments:
    """The arguments of a warm start; `others` tell how long it is, and what is logged and saved."""
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,  # below 1 it is a share of all steps
        weight_decay=0.01,
        seed=seed,
        remove_unused_columns=False,  # the collator reads them
        label_names=[],
        **others,
    )


def warm_start(
    model: SalmonnForConditionalGeneration,
    head: AlignmentHead,
    cache: EncoderCache,
    tokenizer: PreTrainedTokenizerBase,
    train_rows: Sequence[Mapping[str, Any]],
    eval_rows: Sequence[Mapping[str, Any]],
    arguments: TrainingArguments,
    callbacks: Sequence[TrainerCallback] = (),
) -> Trainer:
    """Train the connector of a model, and the head, in place; the language model is not run.

    Rows have a `path` that the cache holds, and `alignment_text` or `alignment_words`; arguments are those of
    `alignment_arguments`. Returns the trainer with its log, whose model is the `ConnectorAligner`.
    """
    aligner = ConnectorAligner(model, head)
    aligner.requires_grad_(True)  # whatever an earlier stage has frozen
    trainer = AlignmentTrainer(
        model=aligner,
        args=arguments,
        data_collator=AlignmentCollator(cache, tokenizer, head.pieces),
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        callbacks=list(callbacks),
    )
    if arguments.logging_strategy == "no":
        trainer.remove_callback(PrinterCallback)  # it prints the end of a training even so
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    return trainer
