"""`salmonn demo MODEL`."""

from pathlib import Path
from typing import Annotated

import typer

from modeling_salmonn.commands.options import Device, Host, MaxNewTokens, Model, Quantize, SavedDtype
from modeling_salmonn.data.pictures import require_matplotlib
from modeling_salmonn.hub.devices import AUTO
from modeling_salmonn.hub.loading import load_pipeline
from modeling_salmonn.pipeline_salmonn import DEFAULT_NEW_TOKENS
from modeling_salmonn.serving.clip_chat import ClipChat
from modeling_salmonn.serving.demo import DemoPage, launch_demo, own_uploads


app = typer.Typer(add_completion=False)


@app.command()
def demo(
    model: Model,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 7860,
    max_seconds: Annotated[float, typer.Option(min=1, help="Longest clip in seconds.")] = 60,
    max_megabytes: Annotated[float, typer.Option(min=0.1, help="Largest file in MB.")] = 20,
    max_new_tokens: MaxNewTokens = DEFAULT_NEW_TOKENS,
    device: Device = AUTO,
    dtype: SavedDtype = AUTO,
    quantize: Quantize = None,
) -> None:
    """Chat about clips in a browser."""
    require_matplotlib()  # of spectrograms: told now, not at the first clip
    pipe = load_pipeline(model, device, dtype, quantize)
    chat = ClipChat(pipe, max_seconds, round(max_megabytes * 2**20), max_new_tokens)
    with own_uploads():
        page = DemoPage(chat, Path(model).name)
        typer.echo(f"Open {launch_demo(page, host, port)} in a browser; Ctrl-C ends it.")
        page.blocks.block_thread()
