"""The report of salmonn-smol: the summaries of several evaluations in one JSON file, as tables, and in the model card.

```
EVALUATIONS/stage 2/test/summary.json -> {"test": {"stage 2": {"asr": {...}}}}
```

The model card is the `README.md` beside the report: its scores are those of the column that is shipped.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from modeling_salmonn.data.files import write_bytes, write_json
from modeling_salmonn.data.text_files import read_json_object
from modeling_salmonn.evaluation.run import SUMMARY_FILE
from modeling_salmonn.evaluation.summary import read_summary, table, write_model_index
from modeling_salmonn.hub.model_card import CARD_FILE, fill_sections, load_card


DIGITS = 6  # more than are shown, which are rounded once more
MODEL = "salmonn-smol"
SHIPPED = "stage 2"  # the column of the model whose weights are shipped


def write_report(
    evaluations: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="Folder with COLUMN/SPLIT of salmonn evaluate.")
    ],
    file: Annotated[Path, typer.Argument(help="JSON file to write.")],
) -> None:
    """Gather evaluations into one file, into the model card beside it, and print them as Markdown tables."""
    report = gather_report(evaluations)
    if file.suffix != ".json":
        raise ValueError(f"{file} is no name for a report; give one that ends in .json.")
    if file.exists():
        known = read_json_object(file, "give another name, or delete it")
        if not all(isinstance(columns, dict) for columns in known.values()):
            raise ValueError(f"{file} holds something else than a report, which would be lost; give another name.")
    write_json(file, report)
    card = file.with_name(CARD_FILE)
    if card.is_file():
        write_scores(card, report)
    for split, summaries in report.items():
        typer.echo(f"**{split}**\n\n{table(summaries)}\n")


def gather_report(evaluations: Path) -> dict[str, dict[str, Any]]:
    """Read the summaries of the folders `EVALUATIONS/column/split`.

    Raises:
        ValueError: if there are none.
    """
    report: dict[str, dict[str, Any]] = {}
    for file in sorted(evaluations.glob(f"*/*/{SUMMARY_FILE}")):
        report.setdefault(file.parent.name, {})[file.parent.parent.name] = _rounded(read_summary(file))
    if not report:
        raise ValueError(
            f"{evaluations} has no evaluations; run salmonn evaluate with --output {evaluations}/COLUMN/SPLIT."
        )
    return dict(sorted(report.items()))


def write_scores(card: Path, report: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the scores of the shipped model into its card, in the place of all that it had.

    Args:
        card: the `README.md` of the shipped weights.
        report: of `gather_report`.

    Raises:
        ValueError: if the card cannot be read.
    """
    content = load_card(card)
    content.data.eval_results = None
    write_bytes(card, str(content).encode())
    for split, columns in report.items():
        write_model_index(card, MODEL, f"{MODEL} {split}", columns.get(SHIPPED, {}))
    content = load_card(card)
    fill_sections(content, MODEL, is_on_hub=False)
    write_bytes(card, str(content).encode())


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(entry) for name, entry in value.items()}
    return round(value, DIGITS) if isinstance(value, float) else value
