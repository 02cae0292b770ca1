"""`salmonn compare DIR DIR ...`."""

from pathlib import Path
from typing import Annotated

import typer

from modeling_salmonn.evaluation import summary


app = typer.Typer(add_completion=False)


@app.command()
def compare(
    evaluations: Annotated[list[Path], typer.Argument(help="Output folders of salmonn evaluate, in their order.")],
) -> None:
    """Show the scores of several evaluations in one table.

    Before and after some training, for instance: evaluate both models on the same rows, and compare the two folders.
    """
    typer.echo(summary.compare(evaluations), nl=False)
