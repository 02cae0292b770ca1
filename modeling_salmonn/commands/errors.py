"""What all commands share: how errors are shown.

- what is wrong with the user's input is told in a line, and the exit code is 1
- a fault of the code keeps its traceback, at once: hours of work may lie before it
- `--debug`, or the environment variable SALMONN_DEBUG, shows every traceback, warning and log
"""

import linecache
import os
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import typer
from huggingface_hub.errors import StrictDataclassError
from rich.console import Console
from rich.markup import escape

from modeling_salmonn.hub.installation import explain_error


console = Console()
errors = Console(stderr=True)
DEBUG = "--debug"
DEBUG_VARIABLE = "SALMONN_DEBUG"
INTERRUPTED = 130  # what shells give for a command that was stopped by Ctrl-C
# Packages that raise errors on purpose, and pools, which raise again what their workers did.
OWN = "modeling_salmonn"
SPEAKING = {OWN, "recipes", "transformers", "huggingface_hub", "datasets", "peft", "accelerate"}
SPEAKING |= {"multiprocessing", "concurrent"}
debugging: ContextVar[bool] = ContextVar("debugging", default=False)


@contextmanager
def readable_errors(quiet: bool = True) -> Iterator[None]:
    """Show what is wrong with the user's input in a line, instead of a traceback; `quiet` hides all but errors."""
    from transformers.utils import logging

    if is_debugging():
        yield
        return
    if quiet:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        warnings.simplefilter("ignore")
    try:
        yield
    except BrokenPipeError:  # whoever read our output has enough of it, such as `head`
        raise
    except KeyboardInterrupt as error:
        errors.print("Interrupted.")
        raise typer.Exit(INTERRUPTED) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("typer", "click"):  # exits, and wrong usage
            raise
        if not is_expected(error):
            errors.print("This error was not foreseen; unless memory ran out, please report it with what follows.")
            raise
        message = escape(" ".join(explain_error(error).split()))
        errors.print(f"[bold red]Error:[/] {message}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


def is_debugging() -> bool:
    """Whether `--debug` was given, or SALMONN_DEBUG is set to anything but 0."""
    return debugging.get() or os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0")


def is_expected(error: Exception) -> bool:
    """Whether an error was raised on purpose, to tell a user what is wrong: by a `raise` of a package that does so."""
    if isinstance(error, OSError):
        return True
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith(OWN):
        return True
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    spec = frame.f_globals.get("__spec__")  # a module that is run by `python -m` is called __main__
    package = str(getattr(spec, "name", None) or frame.f_globals.get("__name__")).partition(".")[0]
    kinds: tuple[type[Exception], ...] = (ValueError, ImportError, StrictDataclassError)
    if package == OWN:  # where a TypeError that is raised tells of an argument
        kinds += (TypeError,)
    raised = linecache.getline(frame.f_code.co_filename, line).lstrip().startswith("raise")
    return isinstance(error, kinds) and package in SPEAKING and raised
