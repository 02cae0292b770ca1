"""What is logged besides the losses: a sample answer per task at each evaluation."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from modeling_salmonn.data.collator import SalmonnCollator
from modeling_salmonn.data.examples import Example


logger = logging.getLogger(__name__)


class EvaluationCallback(TrainerCallback):
    """Asks the trainer's model something at each evaluation, once for all of its sets."""

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.last_step = -1

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report, unless another set of the same evaluation has led to it."""
        if state.global_step != self.last_step:  # `Trainer` calls this after each set
            self.take_part(state)

    def take_part(self, state: Any) -> None:
        """Report from the main process; sharded models need every process to take part."""
        self.last_step = state.global_step
        if self.trainer.is_fsdp_enabled or self.trainer.is_deepspeed_enabled or state.is_world_process_zero:
            self.report(state)

    def report(self, state: Any) -> None:
        """Ask the model and log what comes of it."""
        raise NotImplementedError

    @contextmanager
    def model_in_eval_mode(self) -> Iterator[Any]:
        """The unwrapped model without gradients, in the precision of the training."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        was_training = model.training
        model.eval()
        with torch.no_grad(), self.trainer.accelerator.autocast():
            yield model
        model.train(was_training)


class SampleCallback(EvaluationCallback):
    """Answers one example per task at each evaluation, and logs the answers as text."""

    def __init__(self, trainer: Any, examples: Sequence[Example], collator: SalmonnCollator, new_tokens: int):
        super().__init__(trainer)
        self.examples = list(examples)
        self.collator = collator
        self.new_tokens = new_tokens

    def report(self, state: Any) -> None:
        """Answer the examples and log the answers."""
        answers = self.answer()
        if state.is_world_process_zero:
            for example, answer in zip(self.examples, answers, strict=True):
                self._write(example, answer, state)

    def answer(self) -> list[str]:
        """Greedy answers to the examples."""
        tokenizer = self.collator.processor.tokenizer
        answers = []
        with self.model_in_eval_mode() as model:
            for example in self.examples:
                inputs = self.collator.prepare([example]).to(self.trainer.args.device)
                output = model.generate(**inputs, max_new_tokens=self.new_tokens, do_sample=False, num_beams=1)
                new_tokens = output[0, inputs["input_ids"].shape[1] :]
                answers.append(tokenizer.decode(new_tokens, skip_special_tokens=True).strip())
        return answers

    def _write(self, example: Example, answer: str, state: Any) -> None:
        text = f"{example['instruction']}\n\nanswer: {answer}\n\nreference: {example['answer']}"
        logger.info("Step %d, sample of %s: %s", state.global_step, example["task"], text.replace("\n\n", " | "))
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                callback.tb_writer.add_text(f"samples/{example['task']}", text, state.global_step)
