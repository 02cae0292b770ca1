"""Pictures on disk: to the names of pictures alone, never over what is none, in one step. They need matplotlib."""

import os
from io import BytesIO
from pathlib import Path
from typing import Any

from modeling_salmonn.data.files import write_bytes


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


def _holds_picture(file: Path) -> bool:
    """Whether a file is a picture, by its first bytes, or empty."""
    with file.open("rb") as content:
        head = content.read(HEAD_BYTES)
    webp = head.startswith(b"RIFF") and head[8:12] == b"WEBP"
    svg = head.startswith(b"<") and b"<svg" in head
    return not head or head.startswith(PICTURE_STARTS) or webp or svg
