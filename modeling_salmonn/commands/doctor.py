"""`salmonn doctor MODEL`."""

from typing import Annotated

import typer
from rich.console import Console

from modeling_salmonn.hub.doctor import examine, is_healthy, print_report


app = typer.Typer(add_completion=False)


@app.command()
def doctor(model: Annotated[str, typer.Argument(help="Folder or Hub id to examine.")]) -> None:
    """Examine a model: files, hashes, weights, tokenizer, a forward pass, golden answers."""
    checks = examine(model)
    print_report(checks, Console())
    if not is_healthy(checks):
        raise typer.Exit(1)
