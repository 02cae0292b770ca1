"""How all commands show errors.

- what is wrong with the user's input is told in a line, and the exit code is 1
- a fault of the code keeps its traceback, at once: hours of work may lie before it
- `--debug`, or the environment variable SALMONN_DEBUG, shows every traceback, warning and log
"""

import linecache
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from huggingface_hub.errors import StrictDataclassError
from rich.console import Console
from rich.markup import escape
from transformers.utils import logging
from typer.core import TyperGroup

from modeling_salmonn.commands.extras import explain_error


DEBUG = "--debug"
DEBUG_VARIABLE = "SALMONN_DEBUG"
INTERRUPTED = 130  # what shells report of a command that was stopped by Ctrl-C
# Packages that raise errors on purpose, and pools, which raise again what their workers raised.
OWN = {"modeling_salmonn", "recipes"}
SPEAKING = OWN | {"transformers", "huggingface_hub", "datasets", "peft", "accelerate", "multiprocessing", "concurrent"}
errors = Console(stderr=True)


class ReadableGroup(TyperGroup):
    """Commands whose errors are shown in a line, and that take `--debug` in any place.

    Its callback is `take_debug_option`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `--debug` to the front, where it belongs; what follows `--` is no option."""
        end = args.index("--") if "--" in args else len(args)
        options = [word for word in args[:end] if word != DEBUG]
        if len(options) < end:
            args = [DEBUG, *options, *args[end:]]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        if ctx.params["debug"]:
            return super().invoke(ctx)
        with readable_errors():
            return super().invoke(ctx)


def take_debug_option(
    debug: Annotated[
        bool, typer.Option(DEBUG, envvar=DEBUG_VARIABLE, help="Show tracebacks, warnings and logs.")
    ] = False,
) -> None:
    """Declare the option that `ReadableGroup` reads."""


@contextmanager
def readable_errors() -> Iterator[None]:
    """Show what is wrong with the user's input in a line, instead of a traceback."""
    try:
        yield
    except BrokenPipeError:  # whoever reads our output has enough of it, such as `head`
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


def silence_libraries() -> None:
    """Hide warnings, logs and progress bars of the libraries, for commands whose output is an answer."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")


def is_expected(error: Exception) -> bool:
    """Whether an error was raised on purpose, to tell a user what is wrong: by a `raise` of a package that does so."""
    if isinstance(error, OSError):
        return True
    if isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] not in OWN:
        return True
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    spec = frame.f_globals.get("__spec__")  # a module that is run by `python -m` is called __main__
    package = str(getattr(spec, "name", None) or frame.f_globals.get("__name__")).partition(".")[0]
    kinds: tuple[type[Exception], ...] = (ValueError, ImportError, StrictDataclassError)
    if package in OWN:  # where a TypeError that is raised tells of an argument
        kinds += (TypeError,)
    raised = linecache.getline(frame.f_code.co_filename, line).lstrip().startswith("raise")
    return isinstance(error, kinds) and package in SPEAKING and raised
