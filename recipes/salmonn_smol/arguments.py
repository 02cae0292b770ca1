"""Arguments that several commands take; a command is the function of the module that makes something."""

from pathlib import Path
from typing import Annotated

import typer


Folder = Annotated[Path, typer.Argument(help="Folder to make or to complete.")]
Corpus = Annotated[
    Path, typer.Argument(exists=True, file_okay=False, help="Corpus with the folders train, validation and test.")
]
AudioFolders = Annotated[list[Path], typer.Argument(exists=True, file_okay=False, help="Audio folders to vary.")]
Extra = Annotated[
    list[Path] | None,
    typer.Option(exists=True, file_okay=False, help="Further audio folder for training."),
]
Jobs = Annotated[int, typer.Option(min=1, help="Clips made at the same time.")]
Seed = Annotated[int, typer.Option(help="Seed of all choices; the same seed gives the same.")]
