"""Saves over a folder, in processes that are killed before one file operation after the other.

```
python killed_saves.py FOLDER STRIDE OLD NEW    # forms: full, shards, plain, adapter, trainer
```

Prints as JSON how often the folder then loads as the old model, as the new one, or is refused; anything else is named.
"""

import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from conftest import tiny_config, tiny_model, tiny_processor
from model_bases import randomise_adapter, save_bases
from transformers.utils import logging

from modeling_salmonn import SalmonnConfig, SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.training.arguments import SalmonnTrainingArguments
from modeling_salmonn.training.trainer import SalmonnTrainer


CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.copyfile", "shutil.rmtree")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def call_before_changes(act: Callable[[int], Any]) -> None:
    """Call with the number of each operation that changes files, before it happens."""
    count = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event in CHANGES or (event == "open" and args[2] & WRITING):
            act(count)
            count += 1

    sys.addaudithook(hook)


def in_child(body: Callable[[], None]) -> int:
    """Run the body in a process of its own; returns its exit status."""
    child = os.fork()
    if child == 0:
        body()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Saver:
    """Models that differ in every trained tensor, and ways to save them."""

    def __init__(self, folder: Path):
        self.config = tiny_config(segment_seconds=[2, 5, 10, 30], trim_audio_tokens=True)
        self.config.update(save_bases(tiny_model(self.config), folder / "bases"))
        self.trainer_folder = folder / "trainer"

    def model(self, form: str, seed: int) -> SalmonnForConditionalGeneration:
        model = tiny_model(SalmonnConfig(**self.config.to_dict()))
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if name.startswith(("model.projector", "model.qformer")):
                torch.nn.init.normal_(parameter)
        if form != "plain":
            model.add_lora()
            randomise_adapter(model)
        return model.eval()

    def save(self, model: SalmonnForConditionalGeneration, form: str, folder: Path) -> None:
        processor = tiny_processor(self.config)
        if form == "trainer":
            arguments = SalmonnTrainingArguments(output_dir=str(self.trainer_folder), use_cpu=True, report_to="none")
            SalmonnTrainer(model=model, args=arguments, processing_class=processor).save_model(str(folder))
            return
        size = "20KB" if form == "shards" else "50GB"
        model.save_pretrained(folder, adapter_only=form == "adapter", max_shard_size=size)
        processor.save_pretrained(folder)


def outcome(folder: Path, models: dict[str, SalmonnForConditionalGeneration]) -> str:
    """What a folder has become: `old`, `new`, `refused`, or what is wrong with it."""
    try:
        found = SalmonnForConditionalGeneration.from_pretrained(folder).state_dict()
        SalmonnProcessor.from_pretrained(folder)
    except ValueError as error:
        return "refused" if "was being saved to when the process ended" in str(error) else f"unclear: {error}"
    for name, model in models.items():
        expected = model.state_dict()
        if found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected):
            return name
    return "mixed"


def kill_saves(folder: Path, old_form: str, new_form: str, stride: int) -> Counter[str]:
    """Kill a save at every `stride`-th operation, each time over the same old folder."""
    saver = Saver(folder)
    models = {"old": saver.model(old_form, 1), "new": saver.model(new_form, 2)}
    before, work = folder / "before", folder / "work"
    saver.save(models["old"], old_form, before)
    shutil.copytree(before, work)
    reading, writing = os.pipe()

    def save() -> None:
        saver.save(models["new"], new_form, work)

    def count_operations() -> None:
        call_before_changes(lambda number: os.write(writing, b"."))
        save()

    def save_until(last: int) -> None:
        call_before_changes(lambda number: os.kill(os.getpid(), signal.SIGKILL) if number == last else None)
        save()

    assert in_child(count_operations) == 0
    outcomes: Counter[str] = Counter([outcome(work, models)])
    for number in range(0, len(os.read(reading, 1 << 16)), stride):
        shutil.rmtree(work)
        shutil.copytree(before, work)
        assert in_child(partial(save_until, number)) == -signal.SIGKILL
        found = outcome(work, models)
        outcomes[found] += 1
        if found == "refused" and outcomes[found] == 1:  # is mended by saving again
            save()
            assert outcome(work, models) == "new"
    return outcomes


if __name__ == "__main__":
    torch.set_num_threads(1)  # a forked process has no other threads
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print(json.dumps(kill_saves(Path(sys.argv[1]), sys.argv[3], sys.argv[4], stride=int(sys.argv[2]))))
