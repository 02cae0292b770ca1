"""The report of salmonn-smol: the summaries of several evaluations in one JSON file, and as tables.

```
EVALUATIONS/stage 2/test/summary.json -> {"test": {"stage 2": {"asr": {...}}}}
```
"""

from pathlib import Path
from typing import Any

from modeling_salmonn.data.files import write_json
from modeling_salmonn.data.text_files import read_json_object
from modeling_salmonn.evaluation.run import SUMMARY_FILE
from modeling_salmonn.evaluation.summary import read_summary, table


DIGITS = 6  # more than are shown, which are rounded once more
Report = dict[str, dict[str, Any]]


def gather_report(evaluations: Path, columns: list[str] | None = None) -> Report:
    """Read the summaries of the folders `EVALUATIONS/column/split`.

    Args:
        evaluations: the folder.
        columns: their order; by name if not given.

    Raises:
        ValueError: if there are none, or one of the columns is missing.
    """
    found = sorted(file.parent.parent.name for file in evaluations.glob(f"*/*/{SUMMARY_FILE}"))
    columns = columns or list(dict.fromkeys(found))
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


def write_report(report: Report, file: Path) -> None:
    """Write the report in one step.

    Raises:
        ValueError: if the file has no name of JSON, or holds something else than a report, which would be lost.
    """
    if file.suffix != ".json":
        raise ValueError(f"{file} is no name for a report; give one that ends in .json.")
    if file.exists():
        known = read_json_object(file, "give another name, or delete it")
        if not all(isinstance(columns, dict) for columns in known.values()):
            raise ValueError(f"{file} holds something else than a report, which would be lost; give another name.")
    write_json(file, report)


def report_tables(report: Report) -> str:
    """A Markdown table for each split."""
    return "\n\n".join(f"**{split}**\n\n{table(summaries)}" for split, summaries in report.items())


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(entry) for name, entry in value.items()}
    return round(value, DIGITS) if isinstance(value, float) else value


__all__ = ["gather_report", "report_tables", "write_report"]
