"""`salmonn export MODEL OUTPUT`."""

from pathlib import Path
from typing import Annotated

import typer

from modeling_salmonn.commands.options import Model, Quantize
from modeling_salmonn.hub.convert import DTYPES
from modeling_salmonn.hub.export import export_model


app = typer.Typer(add_completion=False)


def check_dtype(name: str | None) -> str | None:
    """Refuse a type that weights are not saved in."""
    if name is not None and name not in DTYPES:
        raise typer.BadParameter(f"must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, got {name!r}.")
    return name


@app.command()
def export(
    model: Model,
    output: Annotated[Path, typer.Argument(help="Folder to create.")],
    adapter_apart: Annotated[
        bool,
        typer.Option(
            "--adapter-apart/--merged",
            help="Keep the LoRA adapter in a folder of its own, or merge it into the weights.",
        ),
    ] = False,
    lora_scale: Annotated[
        list[float] | None,
        typer.Option(help="With --adapter-apart, another scale to write the adapter for; repeatable."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(callback=check_dtype, help="Type of the weights; that of MODEL if not given.")
    ] = None,
    quantize: Quantize = None,
) -> None:
    """Write a folder for serving engines such as vLLM, which load it without this package.

    With --quantize, a folder of smaller weights for transformers, where AutoModel loads it.
    """
    adapters = export_model(
        model, output, adapter_apart=adapter_apart, lora_scales=lora_scale or (), dtype=dtype, quantize=quantize
    )
    if quantize is None:
        typer.echo(f"Wrote {output}: vllm serve {output} --trust-remote-code")
    else:
        typer.echo(f"Wrote {output}: AutoModel.from_pretrained({str(output)!r}, trust_remote_code=True)")
    for folder in adapters:
        typer.echo(f"  adapter {folder}")
