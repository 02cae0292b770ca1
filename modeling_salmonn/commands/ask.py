"""`salmonn ask AUDIO QUESTION --model MODEL`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from modeling_salmonn import AudioTextPipeline, SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.commands.options import Device, LoraScale, MaxNewTokens, Quantize, check_salmonn
from modeling_salmonn.data.pictures import require_matplotlib, require_picture_path
from modeling_salmonn.hub.devices import AUTO, resolve_device
from modeling_salmonn.hub.quantization import Quantization, quantization_config
from modeling_salmonn.pipeline_salmonn import DEFAULT_NEW_TOKENS
from modeling_salmonn.serving.attribution import explain as explain_answer
from modeling_salmonn.serving.attribution_figure import plot_explanation


app = typer.Typer(add_completion=False)


@app.command()
def ask(
    audio: Annotated[str, typer.Argument(help="Audio file or URL.")],
    question: Annotated[str, typer.Argument(help="What to ask or order.")],
    model: Annotated[str, typer.Option(help="Folder or Hub id of a SALMONN model.", callback=check_salmonn)],
    max_new_tokens: MaxNewTokens = DEFAULT_NEW_TOKENS,
    num_beams: Annotated[
        int | None, typer.Option(min=1, help="Beams instead of the model's own setting; 1 is greedy.")
    ] = None,
    lora_scale: LoraScale = None,
    device: Device = AUTO,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16; auto: as saved.")] = AUTO,
    quantize: Quantize = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer while it is made.")] = False,
    explain: Annotated[
        Path | None, typer.Option(help="Picture (.png, .pdf, .svg) of the seconds that the answer rests on.")
    ] = None,
) -> None:
    """Answer a question about an audio file."""
    if explain is not None:
        require_explainable(num_beams, stream, explain)
    pipe = load_pipeline(model, device, dtype, quantize)
    if explain is not None:
        answer_and_explain(pipe, audio, question, explain, max_new_tokens, lora_scale)
        return
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens}
    if num_beams is not None:
        options["num_beams"] = num_beams
    if lora_scale is not None:
        options["lora_scale"] = lora_scale
    if not stream:
        typer.echo(pipe(audio, text=question, **options)[0]["generated_text"])
        return
    for piece in pipe.stream(audio, text=question, **options):
        typer.echo(piece, nl=False)
    typer.echo()


def load_pipeline(model: str, device: str, dtype: str, quantize: Quantization | None = None) -> AudioTextPipeline:
    """The pipeline of the installed package; code that comes with the model is not run."""
    processor = SalmonnProcessor.from_pretrained(model, trust_remote_code=False)
    place = resolve_device(device)
    if quantize is None:
        loaded = SalmonnForConditionalGeneration.from_pretrained(model, dtype=dtype)
        return AudioTextPipeline(model=loaded, processor=processor, device=place)
    loaded = SalmonnForConditionalGeneration.from_pretrained(
        model, dtype=dtype, quantization_config=quantization_config(quantize), device_map={"": place}
    )
    return AudioTextPipeline(model=loaded, processor=processor)  # it is where it belongs


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
