"""`transformers.Trainer` with what SALMONN adds.

- rates of their own for connector, LoRA and encoders
- logits at the positions of labels alone
- checkpoints of what is trained alone, that count only when they are complete
- draws of a mixture that follow from seed and epoch
- on demand the alignment loss, whose head is trained along
"""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import save_fsdp_optimizer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_utils import HubStrategy

from modeling_salmonn.checkpoint_files_salmonn import is_own_weight_file
from modeling_salmonn.data.alignment_labels import count_targets
from modeling_salmonn.data.examples import ExampleSet
from modeling_salmonn.data.word_pieces import WordPieces
from modeling_salmonn.hub.saved_folder import SavedFolder
from modeling_salmonn.hub.upload import published_names
from modeling_salmonn.processing.processing_salmonn import IGNORED_LABEL
from modeling_salmonn.staged_saving_salmonn import replace_files
from modeling_salmonn.training.alignment import AlignmentHead
from modeling_salmonn.training.arguments import SalmonnTrainingArguments
from modeling_salmonn.training.checkpoints import MarkingTrainer, read_weights
from modeling_salmonn.training.stages import load_trained, sharded_layers, trained_parameters
from modeling_salmonn.weight_names_salmonn import part_of


logger = logging.getLogger(__name__)

SCHEDULES_WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
ALIGNMENT_INPUTS = ("alignment_labels", "bag_labels")
ALIGNMENT_FILE = "alignment_head.safetensors"
WORD_PIECES = "word_pieces"  # in its metadata, where words are spelled in pieces of their own


class HeadGradients(TrainerCallback):
    """Averages the gradients of the alignment head over processes, and clears them after a step.

    `Trainer` does both for the model alone. All processes take part, also one whose clips had no words.
    """

    def __init__(self, head: nn.Module, accelerator: Any):
        self.head = head
        self.accelerator = accelerator

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.accelerator.num_processes > 1:
            for parameter in self.head.parameters():
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self.accelerator.reduce(gradient, reduction="mean")

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.head.zero_grad()


class SalmonnTrainer(MarkingTrainer):
    """Trains a stage, with the arguments of `transformers.Trainer`; `alignment_head` adds the alignment loss."""

    args: SalmonnTrainingArguments
    model: Any
    optimizer: Any

    def __init__(self, *, alignment_head: AlignmentHead | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.alignment_head = alignment_head
        self._step_targets: torch.Tensor | None = None  # of the alignment loss, in the step that is being made
        if self.is_fsdp_enabled:
            self._set_up_fsdp(self.accelerator.state.fsdp_plugin)
        if alignment_head is not None:
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise ValueError("The alignment loss needs an unsharded model; set alignment_weight=0.")
            alignment_head.to(self.args.device)
            self.add_callback(HeadGradients(alignment_head, self.accelerator))

    def _set_up_fsdp(self, plugin: Any) -> None:
        plugin.transformer_cls_names_to_wrap = list(
            sharded_layers(self.model, plugin.transformer_cls_names_to_wrap or ())
        )
        if "FULL_STATE_DICT" not in str(plugin.state_dict_type):
            raise ValueError(
                f"fsdp_state_dict_type is {plugin.state_dict_type}; set FULL_STATE_DICT, so that checkpoints hold "
                "whole tensors of what is trained."
            )

    @property
    def saves_adapter_only(self) -> bool:
        """Whether checkpoints need the connector and LoRA alone: the bases are frozen and named."""
        config = self.accelerator.unwrap_model(self.model).config
        bases = [config.speech_model_id, config.text_model_id]
        if config.audio_config is not None:
            bases.append(config.audio_model_id)
        trained = trained_parameters(self.model).keys()
        return None not in bases and trained <= {"connector", "lora"}

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The language-model loss; in training plus the weighted alignment loss, if there is a head for it."""
        alignment = {name: inputs[name] for name in ALIGNMENT_INPUTS if name in inputs}
        inputs = {name: value for name, value in inputs.items() if name not in alignment}
        if self.args.prediction_loss_only and "labels" in inputs:  # otherwise someone wants all logits
            inputs = keep_label_positions(inputs) | {"use_cache": False}
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if self.alignment_head is not None and alignment and model.training:
            loss = loss + self.args.alignment_weight * self._alignment_loss(inputs, outputs, alignment)
        return (loss, outputs) if return_outputs else loss

    def _alignment_loss(self, inputs: dict[str, Any], outputs: Any, alignment: dict[str, torch.Tensor]) -> Any:
        model = self.accelerator.unwrap_model(self.model)
        frames = inputs["input_features_mask"].long().sum(-1).tolist()  # mel frames of each clip
        counts = torch.tensor([model.model.audio_layout.num_audio_tokens(count) for count in frames])
        assert self.alignment_head is not None
        loss = self.alignment_head(
            outputs.audio_hidden_states,
            counts.to(self.args.device),
            *(alignment.get(name) for name in ALIGNMENT_INPUTS),
            model.get_input_embeddings().weight,
            self._step_targets,
        )
        return loss * self.accelerator.num_processes  # whose gradients are averaged

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """As ever; the alignment targets of the step are counted too, over its batches and all processes."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.alignment_head is not None:
            counted = torch.zeros((), dtype=torch.long)
            for batch in batches:
                labels = [batch[name] for name in ALIGNMENT_INPUTS if name in batch]
                counted = counted + (count_targets(*labels).cpu() if labels else 0)
            self._step_targets = self.accelerator.reduce(counted.to(device), reduction="sum")
        return batches, num_items

    def create_optimizer(self, model: Any = None) -> Any:
        """One group per part and weight decay, each with its learning rate."""
        if self.optimizer is None:
            trained = self.model if model is None else model
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
            self.optimizer = optimizer_class(self.parameter_groups(trained), **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """As ever; a run that ends within its warm-up is warned of."""
        steps = self.args.get_warmup_steps(num_training_steps)
        has_warmup = self.args.lr_scheduler_type not in SCHEDULES_WITHOUT_WARMUP
        if has_warmup and steps >= num_training_steps and self.is_world_process_zero():
            logger.warning(
                "warmup_steps is %d, but the run has %d steps and would not reach its learning_rate; give fewer, or a "
                "share of all steps, as 0.05.",
                steps,
                num_training_steps,
            )
        return super().create_scheduler(num_training_steps, optimizer)

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """What is trained, by part; LayerNorms and biases without weight decay."""
        decayed = set(self.get_decay_parameter_names(model))
        groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                groups.setdefault((part_of(name), name in decayed), []).append(parameter)
        if self.alignment_head is not None:
            groups.setdefault(("connector", True), []).extend(self.alignment_head.parameters())
        described = []
        for (part, is_decayed), parameters in groups.items():
            decay = self.args.weight_decay if is_decayed else 0.0
            described.append({"params": parameters, "lr": self._rate(part), "weight_decay": decay})
        return described

    def _rate(self, part: str) -> float:
        """Learning rate of a part: its own, be it 0, or that of all."""
        rates = {"connector": self.args.connector_learning_rate, "lora": self.args.lora_learning_rate}
        rate = rates.get(part, self.args.encoder_learning_rate)
        return self.args.learning_rate if rate is None else rate

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As ever; of several sets also the mean of their losses, as `eval_loss`."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        chosen = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(chosen, dict):
            mean = sum(metrics[f"{metric_key_prefix}_{name}_loss"] for name in chosen) / len(chosen)
            over_all = {f"{metric_key_prefix}_loss": mean}
            metrics |= over_all
            self.log(dict(over_all))
            # for early stopping, say; without the losses of the sets, for which callbacks have been called
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, over_all)
        return metrics

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not isinstance(dataset, ExampleSet):
            return super()._get_train_sampler(train_dataset)
        # Epochs have whole optimiser steps, over all processes.
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return dataset.sampler(step, seed)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        if not self.args.should_save:
            return
        # all at once: a processor or a head of another model would be silently wrong
        with replace_files(output_dir or self.args.output_dir, _is_own_file) as folder:
            model = self.accelerator.unwrap_model(self.model)
            with _named(model.config, self.hub_model_id):
                model.save_pretrained(folder, adapter_only=self.saves_adapter_only, state_dict=state_dict)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)
            if self.alignment_head is not None:
                pieces = self.alignment_head.pieces
                metadata = {} if pieces is None else {WORD_PIECES: pieces.to_json()}
                save_file(self.alignment_head.state_dict(), folder / ALIGNMENT_FILE, metadata)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # transformers would save all of the frozen model again, beside what `_save` has written
        plugin = self.accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """As ever, but with all files of the model: `Trainer` copies those of its own names, and no connector."""
        is_uploading = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if is_uploading and not self.args.hub_always_push:
            return
        if self.args.should_save and self.args.hub_strategy != HubStrategy.END:
            assert self.args.output_dir is not None
            saved = SavedFolder(Path(checkpoint_folder))
            with replace_files(self.args.output_dir, _is_own_file) as folder:
                for name in {*published_names(saved), *filter(_is_own_file, saved.names())}:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(saved.folder / name, folder / name)
        super()._push_from_checkpoint(checkpoint_folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trained(self.model if model is None else model, read_weights(resume_from_checkpoint))
        if self.alignment_head is not None:
            file = Path(resume_from_checkpoint) / ALIGNMENT_FILE
            if not file.is_file():
                raise ValueError(
                    f"There is no {file}: that run had no alignment loss; resume with alignment_weight=0."
                )
            self.alignment_head.load_state_dict(load_file(file))

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)


def read_word_pieces(file: Path, tokenizer: PreTrainedTokenizerBase) -> WordPieces | None:
    """What the words were spelled in for an alignment head; `None`: in the tokenizer's own pieces."""
    with safe_open(file, "pt") as head:
        text = (head.metadata() or {}).get(WORD_PIECES)
    return None if text is None else WordPieces.from_json(tokenizer, text)


@contextmanager
def _named(config: PreTrainedConfig, hub_id: str | None) -> Iterator[None]:
    """Save under the name of the repository that is pushed to, if there is one: `AutoModel` follows the adapter's."""
    origin = config.name_or_path  # which the card tells
    config.name_or_path = hub_id or origin
    try:
        yield
    finally:
        config.name_or_path = origin


def _is_own_file(name: str) -> bool:
    return is_own_weight_file(name) or name == ALIGNMENT_FILE


def keep_label_positions(inputs: dict[str, Any]) -> dict[str, Any]:
    """Have the model compute only the logits that the loss reads: prompts and padding have none.

    Args:
        inputs: the model's, with `labels` of shape `(batch, length)`.

    Returns:
        The inputs with `logits_to_keep`, true at the positions `(batch, length)` with a label for the next token, and
        these labels as `shift_labels`; the loss is the same.
    """
    shifted = nn.functional.pad(inputs["labels"], (0, 1), value=IGNORED_LABEL)[:, 1:]
    labelled = shifted != IGNORED_LABEL
    return inputs | {"logits_to_keep": labelled, "shift_labels": shifted[labelled]}
