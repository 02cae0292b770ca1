"""`salmonn ask AUDIO... QUESTION --model MODEL`; of many clips also by several processes."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from modeling_salmonn import AudioTextPipeline
from modeling_salmonn.commands.options import (
    BatchSize,
    Device,
    LoraScale,
    MaxNewTokens,
    NumWorkers,
    Quantize,
    SavedDtype,
    check_salmonn,
)
from modeling_salmonn.data.clip_files import find_clips, is_one_clip
from modeling_salmonn.data.pictures import require_matplotlib, require_picture_path
from modeling_salmonn.hub.devices import AUTO, process_state
from modeling_salmonn.hub.loading import load_pipeline
from modeling_salmonn.hub.quantization import Quantization
from modeling_salmonn.pipeline_salmonn import DEFAULT_NEW_TOKENS
from modeling_salmonn.processing.audio_segments_salmonn import MEL_FRAMES_PER_SECOND
from modeling_salmonn.serving.answer_files import SRT, files_of, format_of, require_own_files, write_answers
from modeling_salmonn.serving.attribution import explain as explain_answer
from modeling_salmonn.serving.attribution_figure import plot_explanation
from modeling_salmonn.serving.many_clips import Asking, ask_clips


app = typer.Typer(add_completion=False)


@app.command()
def ask(
    audio: Annotated[
        list[str], typer.Argument(help="Audio file or URL; with --output also several, folders and patterns.")
    ],
    question: Annotated[str, typer.Argument(help="What to ask or order.")],
    model: Annotated[str, typer.Option(help="Folder or Hub id of a SALMONN model.", callback=check_salmonn)],
    max_new_tokens: MaxNewTokens = DEFAULT_NEW_TOKENS,
    num_beams: Annotated[
        int | None, typer.Option(min=1, help="Beams instead of the model's own setting; 1 is greedy.")
    ] = None,
    lora_scale: LoraScale = None,
    device: Device = AUTO,
    dtype: SavedDtype = AUTO,
    quantize: Quantize = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer while it is made.")] = False,
    explain: Annotated[
        Path | None, typer.Option(help="Picture (.png, .pdf, .svg) of the seconds that the answer rests on.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="File of the answers about many clips; what was stopped resumes there.")
    ] = None,
    output_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="jsonl, csv or srt, if the name of the output does not tell. srt: subtitles with the times of the "
            "windows that long clips are cut into; of several clips into a folder.",
        ),
    ] = None,
    batch_size: BatchSize = 8,
    num_workers: NumWorkers = None,
) -> None:
    """Answer a question about an audio file, or about many of them.

    On several devices: accelerate launch -m modeling_salmonn ask FOLDER QUESTION --output answers.jsonl ...
    """
    if os.path.exists(question):  # a pattern that the shell expanded, and no question behind it
        raise ValueError(f"The question comes last, and {question} is a file or a folder; put the question behind it.")
    if output is not None:
        if stream or explain is not None:
            raise ValueError("--stream and --explain are for one clip; leave out --output.")
        asking = Asking(question, max_new_tokens, num_beams, lora_scale)
        _ask_many(audio, asking, model, device, dtype, quantize, output, output_format, batch_size, num_workers)
        return
    if not is_one_clip(audio) or output_format is not None:
        raise ValueError("Answers about several clips, folders and patterns go to a file; give --output.")
    _ask_one(
        audio[0], question, model, device, dtype, quantize, max_new_tokens, num_beams, lora_scale, stream, explain
    )


def _ask_one(
    audio: str,
    question: str,
    model: str,
    device: str,
    dtype: str,
    quantize: Quantization | None,
    max_new_tokens: int,
    num_beams: int | None,
    lora_scale: float | None,
    stream: bool,
    explain: Path | None,
) -> None:
    """Print the answer about a clip."""
    if explain is not None:
        require_explainable(num_beams, stream, explain)
    pipe = load_pipeline(model, device, dtype, quantize)
    if explain is not None:
        answer_and_explain(pipe, audio, question, explain, max_new_tokens, lora_scale)
        return
    options: dict[str, Any] = Asking(question, max_new_tokens, num_beams, lora_scale).options()
    if not stream:
        typer.echo(pipe(audio, text=question, **options)[0]["generated_text"])
        return
    for piece in pipe.stream(audio, text=question, **options):
        typer.echo(piece, nl=False)
    typer.echo()


def _ask_many(
    names: list[str],
    asking: Asking,
    model: str,
    device: str,
    dtype: str,
    quantize: Quantization | None,
    output: Path,
    output_format: str | None,
    batch_size: int,
    num_workers: int | None,
) -> None:
    """Write the answers about many clips, and tell how many failed."""
    form = format_of(output, output_format)
    clips = find_clips(names)
    files = files_of(output, form, clips)
    # beside the output and by its name, so that the same command finds it after a kill
    journal = output.with_name(f"{output.name}.journal")
    require_own_files(files, journal)
    state = process_state()  # before the model is loaded: it gives each process an accelerator of its own
    pipe = load_pipeline(model, device, dtype, quantize)
    if form == SRT:  # times of an answer are those of its window, which the model hears as one segment
        longest = pipe.processor.feature_extractor.audio_layout.longest_segment
        asking = replace(asking, window_seconds=longest / MEL_FRAMES_PER_SECOND)
    answered = ask_clips(pipe, clips, asking, journal, batch_size, num_workers)
    if not state.is_main_process:
        return
    write_answers(files, form, asking.question, answered)
    failures = [rows[0] for rows in answered if rows[0]["error"] is not None]
    typer.echo(f"{len(clips) - len(failures)} of {len(clips)} clips answered: {output}")
    if failures:
        first = failures[0]
        # the file is complete, but scripts have to see that answers are missing
        typer.echo(f"{len(failures)} failed, the first one {first['path']}: {first['error']}", err=True)
        raise typer.Exit(1)


def require_explainable(num_beams: int | None, stream: bool, picture: Path) -> None:
    """Refuse what `--explain` cannot do before the model is loaded."""
    if stream or (num_beams or 1) > 1:
        raise ValueError("--explain explains the greedy answer as a whole; leave out --stream and --num-beams.")
    require_matplotlib()
    require_picture_path(picture)


def answer_and_explain(
    pipe: AudioTextPipeline, audio: str, question: str, picture: Path, max_new_tokens: int, lora_scale: float | None
) -> None:
    """Print the answer, draw the picture, and print what it shows."""
    extractor = pipe.processor.feature_extractor
    waveform = extractor.fetch_audio(audio)
    clip = {"array": waveform, "sampling_rate": extractor.sampling_rate}
    explanation = explain_answer(pipe.model, pipe.processor, clip, question, max_new_tokens, lora_scale)
    typer.echo(explanation.answer)
    plot_explanation(explanation, waveform, picture)
    typer.echo(f"{explanation.summary()}; picture: {picture}")
