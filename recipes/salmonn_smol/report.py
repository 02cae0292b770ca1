"""The report of salmonn-smol: the summaries of several evaluations in one JSON file and as tables, and its curves.

```
EVALUATIONS/stage 2/test/summary.json -> {"test": {"stage 2": {"asr": {...}}}}
```
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from modeling_salmonn.data.files import write_json
from modeling_salmonn.data.pictures import require_matplotlib, require_picture_path, save_figure
from modeling_salmonn.data.text_files import read_json_object
from modeling_salmonn.evaluation.run import SUMMARY_FILE
from modeling_salmonn.evaluation.summary import read_summary, table
from modeling_salmonn.studies.plots import make_panels


DIGITS = 6  # more than are shown, which are rounded once more
PANEL_WIDTH, PANEL_HEIGHT = 4.5, 3.5  # inches
CURVES = ("loss", "_wer")  # ends of the names that are drawn
Report = dict[str, dict[str, Any]]


def write_report(
    evaluations: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="Folder with COLUMN/SPLIT of salmonn evaluate.")
    ],
    file: Annotated[Path, typer.Argument(help="JSON file to write.")],
    column: Annotated[list[str] | None, typer.Option(help="Only these columns, in this order.")] = None,
) -> None:
    """Gather evaluations into one file, and print them as Markdown tables."""
    report = gather_report(evaluations, column)
    if file.suffix != ".json":
        raise ValueError(f"{file} is no name for a report; give one that ends in .json.")
    if file.exists():
        known = read_json_object(file, "give another name, or delete it")
        if not all(isinstance(columns, dict) for columns in known.values()):
            raise ValueError(f"{file} holds something else than a report, which would be lost; give another name.")
    write_json(file, report)
    for split, summaries in report.items():
        typer.echo(f"**{split}**\n\n{table(summaries)}\n")


def gather_report(evaluations: Path, columns: list[str] | None = None) -> Report:
    """Read the summaries of the folders `EVALUATIONS/column/split`.

    Args:
        evaluations: the folder.
        columns: their order; by name if not given.

    Raises:
        ValueError: if there are none, or one of the columns is missing.
    """
    found = sorted({file.parent.parent.name for file in evaluations.glob(f"*/*/{SUMMARY_FILE}")})
    columns = columns or found
    missing = sorted(set(columns) - set(found))
    if missing or not columns:
        raise ValueError(
            f"{evaluations} has no evaluation {', '.join(missing) or 'at all'}; run salmonn evaluate with --output "
            f"{evaluations}/COLUMN/SPLIT."
        )
    report: Report = {}
    for column in columns:
        for file in sorted((evaluations / column).glob(f"*/{SUMMARY_FILE}")):
            report.setdefault(file.parent.name, {})[column] = _rounded(read_summary(file))
    return dict(sorted(report.items()))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(entry) for name, entry in value.items()}
    return round(value, DIGITS) if isinstance(value, float) else value


def plot_curves(
    picture: Annotated[Path, typer.Argument(help="PNG to write.")],
    runs: Annotated[list[Path], typer.Argument(exists=True, file_okay=False, help="Output folders of runs.")],
) -> None:
    """Draw training and evaluation losses over steps, one panel for each run."""
    require_matplotlib()
    require_picture_path(picture)
    logs = [read_log(run) for run in runs]
    figure, panels = make_panels(len(runs), len(runs), PANEL_WIDTH, PANEL_HEIGHT)
    for run, log, axis in zip(runs, logs, panels, strict=True):
        names = {name for entry in log for name in entry if name.startswith("eval_")}
        for name in ["loss", *sorted(names)]:
            points = [(entry["step"], float(entry[name])) for entry in log if name in entry]
            if points and name.endswith(CURVES):
                axis.plot(*zip(*points, strict=True), label=name, marker="" if name == "loss" else "o", markersize=3)
        axis.set(title=run.name, xlabel="step", ylim=(0, None))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    save_figure(figure, picture)


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
