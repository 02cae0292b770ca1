"""Scores of all tasks against the LoRA scale at which a model answers (paper, Fig. 3).

```
OUTPUT/scale-0.5/  an evaluation at this scale, with all files of `run.py`
OUTPUT/sweep.json  {task: {metric: [{"scale", "value", "low", "high"}, ...]}}
OUTPUT/sweep.png   OUTPUT/sweep.md
```
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from modeling_salmonn.data.pictures import require_matplotlib
from modeling_salmonn.data.rows import Row
from modeling_salmonn.data.tasks import Task
from modeling_salmonn.evaluation.baselines import load_answerer, require_scale
from modeling_salmonn.evaluation.judges import Judge
from modeling_salmonn.evaluation.run import EvaluationSettings, evaluate, require_measures
from modeling_salmonn.evaluation.summary import metric_named, missing_lines, table
from modeling_salmonn.hub.devices import process_state
from modeling_salmonn.studies.plots import figure_style, make_panels, write_study


SCALES = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
NAME = "sweep"
COLUMNS, PANEL_WIDTH, PANEL_HEIGHT = 4, 3.2, 2.4  # of the figure; inches
READING = """\
Each panel shows one score of one task against the LoRA scaling at which the model answers, with its 95 % interval as
a band. The dashed line is the scaling that the model was trained at ({trained:g}). Read from it leftwards: a lower
scale weakens what instruction tuning has taught, until at 0 the language model is alone with the audio tokens. Error
rates of trained tasks usually rise on the way; that is the price. Where following rate and diversity of untrained
tasks rise before the error rates do, the model over-fits to its tasks, and activation tuning (`salmonn activate`)
with answers written at such a scale is worth trying. Where the following rate stays low at every scale, the ability
itself is lacking; where it is high at the line, there is nothing to cure. A rise along with the repeat rate proves
little: loops have many words too. All scales answer the same rows, so a step may be real although bands overlap; a
point out of line with its neighbours is more likely chance."""

Curves = dict[str, dict[str, list[dict[str, float]]]]


def sweep_scales(
    model: str,
    tasks: Sequence[Task],
    rows: Sequence[Row],
    output: Path,
    judge: Judge,
    scales: Sequence[float] = SCALES,
    settings: EvaluationSettings | None = None,
) -> dict[float, dict[str, Any]]:
    """Evaluate a model at several LoRA scales; what an earlier call has answered is not answered again.

    Args:
        model: folder or Hub id of a SALMONN with an adapter; it is loaded once.
        tasks, rows, output, judge, settings: as of `evaluate`, but for the scale.
        scales: the LoRA scalings, in any order.

    Returns:
        The summaries by scale; see `summarise`.
    """
    require_matplotlib()
    require_measures(tasks)
    settings = settings or EvaluationSettings()
    by_scale = {scale: replace(settings, lora_scale=scale) for scale in sorted(set(scales))}  # checks all of them
    answerer = load_answerer(model, settings.dtype, settings.device)
    require_scale(answerer, model)
    summaries = {}
    for scale, own in by_scale.items():
        folder = output / f"scale-{scale:g}"
        summaries[scale] = evaluate(model, tasks, rows, folder, judge, own, answerer)
    if process_state().is_main_process:
        trained = answerer.model.config.lora_scaling
        curves = curves_of(summaries)
        write_study(output, NAME, curves, sweep_report(summaries, trained), draw_curves(curves, trained))
    return summaries


def curves_of(summaries: Mapping[float, Mapping[str, Any]]) -> Curves:
    """The scores of each task and metric with their scales, from the lowest; a `ValueError` if there are none."""
    curves: Curves = {}
    for scale, summary in sorted(summaries.items()):
        for task, entry in summary.items():
            for name, figure in entry["metrics"].items():
                curves.setdefault(task, {}).setdefault(name, []).append({"scale": scale} | figure)
    if not curves:
        raise ValueError("There is nothing to draw: no clip of any task could be read; see bad_clips.txt.")
    return curves


def sweep_report(summaries: Mapping[float, Mapping[str, Any]], trained: float) -> str:
    """How to read the curves, and their scores as a table."""
    columns = {}
    missing: dict[str, None] = {}  # each sentence once, in order
    for scale, summary in summaries.items():
        mark = " (trained)" if scale == trained else ""
        columns[f"{scale:g}{mark}"] = summary
        missing |= dict.fromkeys(f"- {line}" for line in missing_lines(summary))
    lines = ["# Scores against the LoRA scale", "", READING.format(trained=trained), "", table(columns), ""]
    return "\n".join([*lines, *missing, ""])


@figure_style()
def draw_curves(curves: Curves, trained: float) -> Any:
    """A figure with a panel for each task and metric: its curve, the 95 % band, and a line at the trained scale."""
    shown = []
    for task, metrics in curves.items():
        shown += [(task, name, points) for name, points in metrics.items()]
    figure, panels = make_panels(len(shown), COLUMNS, PANEL_WIDTH, PANEL_HEIGHT)
    for index, (panel, (task, name, points)) in enumerate(zip(panels, shown, strict=True)):
        metric = metric_named(name)
        unit = 100 if metric.percent else 1
        scales = [point["scale"] for point in points]
        low = [unit * point["low"] for point in points]
        value = [unit * point["value"] for point in points]
        high = [unit * point["high"] for point in points]
        panel.axvline(trained, color="0.4", linestyle="--", linewidth=1)
        panel.fill_between(scales, low, high, color="C0", alpha=0.2, linewidth=0)
        panel.plot(scales, value, color="C0", marker="o", markersize=3.5, linewidth=1.5)
        panel.set_ylim(0, None if any(high) else 1)  # nothing but zeros would have no height
        panel.set_title(f"{task}: {name}")
        better = "higher is better" if metric.higher_is_better else "lower is better"
        panel.set_ylabel(f"%, {better}" if metric.percent else better)
        if index + COLUMNS >= len(shown):  # nothing is below it
            panel.set_xlabel("LoRA scaling; dashed: as trained")
    return figure
