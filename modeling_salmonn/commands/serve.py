"""`salmonn serve MODEL`."""

from typing import Annotated

import typer
import uvicorn

from modeling_salmonn.commands.options import Device, Host, Model, Quantize, SavedDtype
from modeling_salmonn.hub.devices import AUTO
from modeling_salmonn.serving.served_model import ServedModel
from modeling_salmonn.serving.server import build_app


app = typer.Typer(add_completion=False)


@app.command()
def serve(
    model: Model,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 for a free one.")] = 8000,
    device: Device = AUTO,
    dtype: SavedDtype = AUTO,
    quantize: Quantize = None,
    max_audio_seconds: Annotated[float, typer.Option(min=0.1, help="Longest clip.")] = 300.0,
    max_body_mib: Annotated[int, typer.Option(min=1, help="Largest request, or clip behind a URL, in MiB.")] = 32,
    max_requests: Annotated[int, typer.Option(min=1, help="Requests at once; more are told to come later.")] = 32,
) -> None:
    """Serve a model to OpenAI's clients: chat completions about audio, transcriptions, streams."""
    max_bytes = max_body_mib * 2**20
    served = ServedModel(model, device, dtype, max_audio_seconds, max_bytes, quantize)
    application = build_app(served, max_bytes, max_requests)
    # at this level the address is told, which a port of 0 leaves open until then
    uvicorn.run(application, host=host, port=port, log_level="info")
