"""What the figures of the analyses share: panels in one style, saved in one step. They need matplotlib."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from modeling_salmonn.training.journal import write_bytes


STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}
DOTS_PER_INCH = 130


def require_matplotlib() -> None:
    """Refuse to begin what ends in a figure that cannot be drawn.

    Raises:
        ImportError: if matplotlib is missing.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError("Figures need matplotlib; install it: pip install matplotlib") from error


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


def save_figure(figure: Any, file: Path) -> None:
    """Write a figure as PNG in one step."""
    content = BytesIO()
    figure.savefig(content, format="png", dpi=DOTS_PER_INCH)
    write_bytes(file, content.getvalue())


__all__ = ["figure_style", "make_panels", "require_matplotlib", "save_figure"]
