"""What the pictures of the studies share: panels in one style. They need matplotlib."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modeling_salmonn.data.files import write_bytes, write_json
from modeling_salmonn.data.pictures import require_matplotlib, save_figure


STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


@contextmanager
def figure_style() -> Iterator[None]:
    """The style of all that is drawn meanwhile; also a decorator of what draws.

    Raises:
        ImportError: if matplotlib is missing.
    """
    require_matplotlib()
    from matplotlib import rc_context

    with rc_context(STYLE):
        yield


def make_panels(count: int, columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure with panels in rows of so many columns.

    Args:
        count: of the panels.
        columns: of a full row.
        width, height: of one panel, in inches.

    Returns:
        The figure, and the axes of its panels.
    """
    from matplotlib.figure import Figure

    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(count)]


def write_study(output: Path, name: str, results: Any, report: str, figure: Any) -> None:
    """Write what a study has found: `NAME.json`, `NAME.md` and `NAME.png` in its folder."""
    write_json(output / f"{name}.json", results)
    write_bytes(output / f"{name}.md", report.encode())
    save_figure(figure, output / f"{name}.png")
