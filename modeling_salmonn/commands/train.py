"""`salmonn train STAGE.yaml [key=value ...]`; several processes: accelerate launch -m modeling_salmonn train ..."""

from typing import Annotated

import typer

from modeling_salmonn.training import run


app = typer.Typer(add_completion=False)


@app.command()
def train(
    stage: Annotated[str, typer.Argument(help="YAML file of the stage, as in recipes/.")],
    settings: Annotated[list[str] | None, typer.Argument(help="key=value words that win over the file.")] = None,
) -> None:
    """Train a stage.

    On several devices: accelerate launch -m modeling_salmonn train STAGE.yaml
    """
    prepared = run.prepare([stage, *(settings or [])])
    if prepared is not None:  # of a dry run nothing is left to do
        run.run_training(*prepared)
