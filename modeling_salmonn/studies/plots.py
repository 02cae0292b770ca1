"""What the pictures of the studies share: panels in one style, saved in one step. They need matplotlib."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from modeling_salmonn.data.files import write_bytes, write_json


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
PICTURE_FORMATS = (".png", ".jpg", ".jpeg", ".pdf", ".svg", ".tif", ".tiff", ".webp")  # that matplotlib writes
# How files of pictures begin; RIFF holds sound as well, and SVG is told by its tag.
PICTURE_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"%PDF-", b"II*\x00", b"MM\x00*")
HEAD_BYTES = 4096


def require_matplotlib() -> None:
    """Refuse to begin what ends in a picture that cannot be drawn.

    Raises:
        ImportError: if matplotlib is missing.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "Figures need matplotlib; install it: pip install matplotlib, or the extra 'evaluation' in the checkout: "
            'pip install ".[evaluation]"'
        ) from error


def require_picture_path(picture: str | os.PathLike) -> Path:
    """Refuse a file that a picture must not be written to, before any work is done for it.

    Args:
        picture: the file; its folder need not exist.

    Returns:
        The same, with `~` expanded.

    Raises:
        ValueError: if its name is not a picture's, if it or its folder is something else than a file or a folder, or
            if there is a file that is no picture, which would be lost.
    """
    file = Path(picture).expanduser()
    if file.suffix.lower() not in PICTURE_FORMATS:
        raise ValueError(f"{picture} is no name for a picture; give one that ends in {', '.join(PICTURE_FORMATS)}.")
    if file.exists() and not file.is_file():
        raise ValueError(f"{picture} is a folder or a device, not a file; give another name.")
    if file.exists() and not _holds_picture(file):
        raise ValueError(f"{picture} holds something else than a picture, which would be lost; give another name.")
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder, so that {picture} cannot be written; give another name.")
    return file


def _holds_picture(file: Path) -> bool:
    """Whether a file is a picture, by its first bytes, or empty."""
    with file.open("rb") as content:
        head = content.read(HEAD_BYTES)
    webp = head.startswith(b"RIFF") and head[8:12] == b"WEBP"
    svg = head.startswith(b"<") and b"<svg" in head
    return not head or head.startswith(PICTURE_STARTS) or webp or svg


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


def save_figure(figure: Any, picture: str | os.PathLike) -> None:
    """Write a figure in one step, in the format that the file's name says; its folder is made.

    Raises:
        ValueError: for a file that a picture must not be written to; see `require_picture_path`.
    """
    file = require_picture_path(picture)
    content = BytesIO()
    figure.savefig(content, format=file.suffix.lower().removeprefix("."), dpi=DOTS_PER_INCH)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, content.getvalue())


def write_study(output: Path, name: str, results: Any, report: str, figure: Any) -> None:
    """Write what a study has found: `NAME.json`, `NAME.md` and `NAME.png` in its folder."""
    write_json(output / f"{name}.json", results)
    write_bytes(output / f"{name}.md", report.encode())
    save_figure(figure, output / f"{name}.png")
