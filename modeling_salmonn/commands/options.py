"""Arguments and options that several commands share, each with its one name and its help."""

from pathlib import Path
from typing import Annotated

import typer

from modeling_salmonn.hub.devices import resolve_device
from modeling_salmonn.hub.quantization import Quantization
from modeling_salmonn.hub.saved_folder import require_model, require_salmonn


def check_salmonn(path: str | None) -> str | None:
    """Refuse what cannot be a SALMONN before anything is loaded."""
    if path is not None:
        require_salmonn(path)
    return path


def check_model(path: str) -> str:
    """Refuse what cannot be a model before anything is loaded."""
    require_model(path)
    return path


def check_device(name: str) -> str:
    """Refuse a device that is not there; `auto` is left to the process that loads the model."""
    resolve_device(name)
    return name


Model = Annotated[str, typer.Argument(help="Folder or Hub id of a SALMONN model.", callback=check_salmonn)]
Data = Annotated[
    list[str], typer.Option(help="Manifest, audio folder, or NAME[=FOLDER] of a public data set; repeatable.")
]
Clips = Annotated[str, typer.Option(help="Manifest or audio folder; its rows need nothing but a path.")]
Output = Annotated[Path, typer.Option(help="Folder to write to; what was stopped resumes there.")]
Tasks = Annotated[
    list[str] | None, typer.Option(help="level1, level2, level3, all, or a task; repeatable; all if not given.")
]
IncludePath = Annotated[Path | None, typer.Option(help="YAML file with tasks of your own.")]
Prompts = Annotated[str | None, typer.Option(help="JSON file of instructions per task, before the bundled ones.")]
Judge = Annotated[str, typer.Option(help="rules, URL#MODEL of a chat endpoint, or a local language model.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many rows of each task, drawn at random.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Clips answered at once.")]
NumWorkers = Annotated[
    int | None,
    typer.Option(min=0, help="Processes that read clips beside the model: 2 with an accelerator, 0 without one."),
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
LoraScale = Annotated[float | None, typer.Option(min=0.0, help="LoRA scaling instead of the trained one.")]
Device = Annotated[
    str, typer.Option(callback=check_device, help="cpu, cuda, cuda:1, mps ...; auto: the accelerator, if any.")
]
Dtype = Annotated[str, typer.Option(help="Type of the weights: float32, bfloat16 or float16.")]
SavedDtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16; auto: as saved.")]
Host = Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")]
Quantize = Annotated[
    Quantization | None, typer.Option(help="Smaller weights of the language model: int8, or int4 for even less.")
]
Seed = Annotated[int, typer.Option(help="Seed of all choices.")]

# of activation tuning
Answers = Annotated[int, typer.Option(min=1, help="Answers to keep, each about another clip.")]
WritingScale = Annotated[
    float | None, typer.Option("--lora-scale", min=0.0, help="LoRA scaling to write at; half of the trained one.")
]
Tries = Annotated[int, typer.Option(min=1, help="Answers drawn about a clip until it is given up.")]
MinWords = Annotated[int, typer.Option(min=1, help="Shorter answers are not kept.")]
Temperature = Annotated[float, typer.Option(help="Temperature of the sampling.")]
Steps = Annotated[int, typer.Option(min=1, help="Optimiser steps.")]
LearningRate = Annotated[float, typer.Option(help="Highest learning rate.")]
