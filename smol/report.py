"""The report of salmonn-smol: every metric of every task, by model and split, in one JSON file.

```
{"stage 2": {"test": {"asr": {"wer": 0.31, "rows": 539}, ...}}, "Whisper-tiny.en": {...}}
```
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modeling_salmonn.training.journal import write_bytes


Scores = Mapping[str, Mapping[str, float]]
FRACTION_DIGITS = 4


def add_scores(report: Path, model: str, split: str, scores: Scores) -> None:
    """Put the metrics of some tasks into the report; other tasks keep theirs."""
    content = json.loads(report.read_text()) if report.is_file() else {}
    tasks = content.setdefault(model, {}).setdefault(split, {})
    for task, metrics in scores.items():
        tasks[task] = {name: round(value, FRACTION_DIGITS) for name, value in metrics.items()}
    write_bytes(report, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def report_table(content: Mapping[str, Mapping[str, Scores]], models: Sequence[str] = ()) -> str:
    """A Markdown table: one line for each split, task and metric, one column for each model."""
    columns = list(models) or list(content)
    lines = [
        f"| split | task | metric | clips | {' | '.join(columns)} |",
        "|---|---|---|" + "---|" * (len(columns) + 1),
    ]
    for split, task, metric in _measured(content, columns):
        found = [content[model].get(split, {}).get(task, {}) for model in columns]
        rows = max(int(metrics.get("rows", 0)) for metrics in found)
        values = [_format(metric, metrics[metric]) if metric in metrics else "" for metrics in found]
        lines.append(f"| {split} | {task} | {metric} | {rows} | {' | '.join(values)} |")
    return "\n".join(lines)


def _measured(content: Mapping[str, Mapping[str, Scores]], models: Sequence[str]) -> list[tuple[str, str, str]]:
    """Split, task and metric of everything that was measured on any of the models."""
    found = {
        (split, task, metric)
        for model in models
        for split, tasks in content[model].items()
        for task, metrics in tasks.items()
        for metric in metrics
        if metric != "rows"
    }
    return sorted(found)


def _format(metric: str, value: Any) -> str:
    return f"{value:.1f}" if metric.startswith("bleu") else f"{100 * value:.1f} %"


__all__ = ["add_scores", "report_table"]
