"""Checkpoints that survive an interruption: one counts only when its last file, the list of all others, is written."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import Trainer
from transformers.trainer_utils import rotate_checkpoints

from modeling_salmonn.checkpoint_files_salmonn import ADAPTER_FILE, is_own_weight_file
from modeling_salmonn.data.files import write_json
from modeling_salmonn.staged_saving_salmonn import reach_disk
from modeling_salmonn.weight_names_salmonn import is_adapter_name


logger = logging.getLogger(__name__)

CHECKPOINT_PREFIX = "checkpoint-"
MARKER = "complete.json"
ALIGNMENT_FOLDER = "alignment"  # of the warm start, within the output folder of its stage


def mark_complete(folder: Path) -> None:
    """Write the list of the folder's files and sizes, in one step, when all of them have reached the disk."""
    sizes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MARKER:
            reach_disk(path)
            sizes[str(path.relative_to(folder))] = path.stat().st_size
    write_json(folder / MARKER, sizes)


def mark_incomplete(folder: Path) -> None:
    """Take the mark away before the folder is written to again."""
    (folder / MARKER).unlink(missing_ok=True)


def is_complete(folder: Path) -> bool:
    """Whether the folder was written to its end, and all its files are still there in their sizes."""
    try:
        sizes = json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        return False
    files = [(folder / name, size) for name, size in sizes.items()]
    return all(file.is_file() and file.stat().st_size == size for file, size in files)


def last_complete_checkpoint(folder: str | os.PathLike) -> Path | None:
    """The newest complete checkpoint of an output folder; `None` if there is none."""
    by_step = {}
    for path in Path(folder).glob(f"{CHECKPOINT_PREFIX}*"):
        number = path.name.removeprefix(CHECKPOINT_PREFIX)
        if number.isdigit():
            by_step[int(number)] = path
    for step in sorted(by_step, reverse=True):
        if is_complete(by_step[step]):
            return by_step[step]
    return None


def refuse_earlier_run(output_dir: str | os.PathLike) -> None:
    """Refuse, by a `ValueError`, an output folder with checkpoints of an earlier run.

    A resumed run could not tell them from the new ones.
    """
    for folder in (Path(output_dir), Path(output_dir) / ALIGNMENT_FOLDER):
        earlier = last_complete_checkpoint(folder)
        if earlier is not None:
            raise ValueError(
                f"{earlier} is of an earlier run; resume with resume_from_checkpoint=true, or give another output_dir."
            )


class MarkingTrainer(Trainer):
    """`Trainer` whose checkpoints count only when they are complete, and whose finished runs stay as they are."""

    args: Any
    accelerator: Any
    state: Any
    control: Any

    def _init_training_state(self, max_steps: int, *args: Any) -> tuple[int, int]:
        begun = super()._init_training_state(max_steps, *args)
        if self.state.global_step >= max_steps:
            logger.warning(
                "Nothing is left to train: the checkpoint is of step %s, and the run has %s; raise max_steps or "
                "num_train_epochs to train on.",
                self.state.global_step,
                max_steps,
            )
        return begun

    def _run_epoch(self, **kwargs: Any) -> None:
        """As ever, but for a finished run, of which `Trainer` would train one more step."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"{CHECKPOINT_PREFIX}{self.state.global_step}"
        if self.args.should_save:
            mark_incomplete(folder)
        # `Trainer` would delete older checkpoints before this one counts.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            mark_complete(folder)
            rotate_checkpoints(
                self.args.output_dir,
                save_total_limit=limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )


def read_weights(folder: str | os.PathLike) -> dict[str, torch.Tensor]:
    """All the model's weights in a checkpoint, connector, adapter or whole model, as they are named in the files.

    Raises:
        ValueError: if there are none.
    """
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        if is_own_weight_file(file.name):
            given = load_file(file)
            if file.name != ADAPTER_FILE:  # which repeats what plain `Trainer` reads elsewhere
                given = {name: tensor for name, tensor in given.items() if not is_adapter_name(name)}
            weights |= given
    if not weights:
        raise ValueError(f"There are no weights in {folder}; give a checkpoint folder to resume from.")
    return weights
