"""What is logged besides the losses: a sample answer per task at each evaluation."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from modeling_salmonn.data.collator import SalmonnCollator
from modeling_salmonn.data.examples import Example


logger = logging.getLogger(__name__)


class SampleCallback(TrainerCallback):
    """Answers one example per task at each evaluation, and logs the answers as text.

    Args:
        trainer: whose model answers.
        examples: one per task.
        collator: prepares them.
        new_tokens: longest answer.
    """

    def __init__(self, trainer: Any, examples: Sequence[Example], collator: SalmonnCollator, new_tokens: int):
        self.trainer = trainer
        self.examples = list(examples)
        self.collator = collator
        self.new_tokens = new_tokens
        self.last_step = -1

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Once for all sets of an evaluation; sharded models need every process to take part."""
        sharded = self.trainer.is_fsdp_enabled or self.trainer.is_deepspeed_enabled
        if state.global_step == self.last_step or not (sharded or state.is_world_process_zero):
            return
        self.last_step = state.global_step
        for example, answer in zip(self.examples, self.answer(), strict=True):
            self._write(example, answer, state)

    def answer(self) -> list[str]:
        """Greedy answers to the examples."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        tokenizer = self.collator.processor.tokenizer
        was_training = model.training
        model.eval()
        answers = []
        with torch.no_grad(), self.trainer.accelerator.autocast():
            for example in self.examples:
                inputs = self.collator.prepare([example]).to(self.trainer.args.device)
                output = model.generate(**inputs, max_new_tokens=self.new_tokens, do_sample=False, num_beams=1)
                new_tokens = output[0, inputs["input_ids"].shape[1] :]
                answers.append(tokenizer.decode(new_tokens, skip_special_tokens=True).strip())
        model.train(was_training)
        return answers

    def _write(self, example: Example, answer: str, state: Any) -> None:
        if not state.is_world_process_zero:
            return
        text = f"{example['instruction']}\n\nanswer: {answer}\n\nreference: {example['answer']}"
        logger.info("Step %d, sample of %s: %s", state.global_step, example["task"], text.replace("\n\n", " | "))
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                callback.tb_writer.add_text(f"samples/{example['task']}", text, state.global_step)


__all__ = ["SampleCallback"]
