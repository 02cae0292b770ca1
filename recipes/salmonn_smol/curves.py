"""The training curves of some runs as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modeling_salmonn.data.text_files import read_json_object
from modeling_salmonn.studies.plots import make_panels, require_matplotlib, require_picture_path, save_figure


PANEL_WIDTH, PANEL_HEIGHT = 4.5, 3.5  # inches


def plot_curves(runs: Sequence[Path], output: Path) -> None:
    """Draw training and evaluation losses over steps, one panel for each run.

    Args:
        runs: output folders with `trainer_state.json`.
        output: PNG to write.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if a run has no log, or the picture must not be written; see `require_picture_path`.
    """
    require_matplotlib()
    require_picture_path(output)
    logs = [read_log(run) for run in runs]
    figure, panels = make_panels(len(runs), len(runs), PANEL_WIDTH, PANEL_HEIGHT)
    for run, log, axis in zip(runs, logs, panels, strict=True):
        names = ["loss", *sorted({name for entry in log for name in entry if name.startswith("eval_")})]
        for name in names:
            points = [(entry["step"], float(entry[name])) for entry in log if name in entry]
            if points and (name == "loss" or name.endswith(("_loss", "_wer"))):
                axis.plot(*zip(*points, strict=True), label=name, marker="" if name == "loss" else "o", markersize=3)
        axis.set(title=run.name, xlabel="step", ylim=(0, None))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    save_figure(figure, output)


def read_log(run: Path) -> list[dict[str, Any]]:
    """The log of a run, from its folder or its newest checkpoint.

    Raises:
        ValueError: if there is none, or it is damaged.
    """
    files = sorted(run.glob("**/trainer_state.json"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise ValueError(f"{run} has no trainer_state.json; give the output folder of a run.")
    log = read_json_object(files[-1], "give the folder of another run").get("log_history")
    if not isinstance(log, list) or not all(isinstance(entry, dict) for entry in log):
        raise ValueError(f"{files[-1]} has no list of entries as 'log_history'; give the folder of another run.")
    return log


__all__ = ["plot_curves", "read_log"]
