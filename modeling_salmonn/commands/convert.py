"""`salmonn convert --whisper ... --llm ... --checkpoint ... --output ...`."""

from typing import Annotated

import typer

from modeling_salmonn.commands.options import Dtype
from modeling_salmonn.hub.convert import convert_checkpoint


app = typer.Typer(add_completion=False)


@app.command()
def convert(
    whisper: Annotated[str, typer.Option(help="Folder or Hub id of the Whisper model.")],
    llm: Annotated[str, typer.Option(help="Folder or Hub id of the LLaMA or Vicuna model.")],
    checkpoint: Annotated[str, typer.Option(help="Checkpoint of the research code (.pth).")],
    output: Annotated[str, typer.Option(help="Folder to create.")],
    beats: Annotated[str | None, typer.Option(help="BEATs file (.pt); leave out if trained without.")] = None,
    config: Annotated[str | None, typer.Option(help="YAML of the research code; default: the stored one.")] = None,
    adapter_only: Annotated[
        bool, typer.Option("--adapter-only", help="Write only what was trained, and name the bases.")
    ] = False,
    # shapes of weights do not tell the heads; 12 are those of BERT-base, whose config the research code takes
    qformer_heads: Annotated[int, typer.Option(min=1, help="Heads of the Q-Former.")] = 12,
    dtype: Dtype = "float32",
) -> None:
    """Convert files of the research code into a Hub folder."""
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
    typer.echo(
        f"Wrote {output}: {report.parameters:,} parameters, {report.trained_parameters:,} of them trained; "
        f"{len(report.mapped)} keys mapped, {len(report.obsolete)} obsolete (conversion_report.json)."
    )
