"""Runs the alignment warm start: the connector alone, with plain `Trainer`, on cached encoder states."""

from collections.abc import Mapping, Sequence
from typing import Any

import jiwer
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.training.alignment import AlignmentHead, ConnectorAligner, alignment_labels
from modeling_salmonn.training.feature_cache import EncoderCache, pad_states


class AlignmentCollator:
    """Cached states of clips with the targets of the alignment loss."""

    def __init__(self, cache: EncoderCache, tokenizer: PreTrainedTokenizerBase):
        self.cache = cache
        self.tokenizer = tokenizer

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """`encoder_hidden_states`, `input_features_mask`, `alignment_labels`, `bag_labels`."""
        inputs = pad_states([self.cache.get(row["path"]) for row in rows])
        return inputs | alignment_labels(rows, self.tokenizer)


class AlignmentTrainer(Trainer):
    """`Trainer` for a `ConnectorAligner` that also evaluates the word error rate of its greedy reading."""

    data_collator: AlignmentCollator
    model: Any

    def evaluate(self, eval_dataset: Any = None, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Mean loss and word error rate (CTC without a language model)."""
        rows = eval_dataset if eval_dataset is not None else self.eval_dataset
        aligner = self.accelerator.unwrap_model(self.model).eval()
        losses: list[float] = []
        read: list[list[int]] = []
        for batch in DataLoader(rows, self.args.eval_batch_size, collate_fn=self.data_collator):
            with torch.no_grad():
                output = aligner(**{name: value.to(self.args.device) for name, value in batch.items()})
            losses.append(float(output["loss"]))
            read += aligner.read(output["audio_tokens"], output["token_counts"])
        texts = self.data_collator.tokenizer.batch_decode(read)
        pairs = [
            (row["alignment_text"], " ".join(text.lower().split()))
            for row, text in zip(rows, texts, strict=True)
            if row.get("alignment_text")
        ]
        references, hypotheses = zip(*pairs, strict=True)
        metrics = {"loss": sum(losses) / len(losses), "wer": jiwer.wer(list(references), list(hypotheses))}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        return metrics


def warm_start(
    model: SalmonnForConditionalGeneration,
    cache: EncoderCache,
    tokenizer: PreTrainedTokenizerBase,
    train_rows: Sequence[Mapping[str, Any]],
    eval_rows: Sequence[Mapping[str, Any]],
    arguments: TrainingArguments,
) -> tuple[AlignmentHead, Trainer]:
    """Train the connector of `model` in place.

    Args:
        model: with frozen encoders and a language model that is not run.
        cache: holds the clips of all rows.
        tokenizer: the language model's.
        train_rows, eval_rows: with `path` and `alignment_text` or `alignment_words`.
        arguments: of `Trainer`; `resume_from_checkpoint` is honoured.

    Returns:
        The head, whose blank and scale the later stages can go on with, and the trainer with its log.
    """
    head = AlignmentHead(model.get_input_embeddings().weight)
    aligner = ConnectorAligner(model, head)
    aligner.requires_grad_(True)
    trainer = AlignmentTrainer(
        model=aligner,
        args=arguments,
        data_collator=AlignmentCollator(cache, tokenizer),
        train_dataset=train_rows,
        eval_dataset=eval_rows,
    )
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    return head, trainer


__all__ = ["AlignmentCollator", "AlignmentTrainer", "warm_start"]
