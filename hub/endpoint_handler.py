"""The handler of Inference Endpoints, which is `handler.py` in an exported folder: the folder's own code answers."""

from typing import Any

from transformers import pipeline


# What a request may set; others of `generate` could run code from elsewhere.
PARAMETERS = frozenset(
    {"text", "max_new_tokens", "min_new_tokens", "num_beams", "do_sample", "temperature", "top_p", "top_k"}
    | {"repetition_penalty", "no_repeat_ngram_size", "lora_scale", "sampling_rate"}
)
FIELDS = ("inputs", "parameters")


class EndpointHandler:
    """Answers requests about clips of strangers, which cannot make it read local files or private addresses.

    Args:
        path: the folder of the model.
    """

    def __init__(self, path: str = "."):
        # the code of the folder, which whoever deploys it has chosen
        self.pipe: Any = pipeline("audio-text", model=path, trust_remote_code=True)

    def __call__(self, data: dict[str, Any]) -> Any:
        """Answer a request.

        Args:
            data: `inputs` is a clip (bytes, base64, a `data:` URI or a URL), `{"audio": clip, "text": question}`,
                chat messages, or a list of these; `parameters` may hold `text`, the question, and options of
                generation such as `max_new_tokens` and `lora_scale`.

        Returns:
            `[{"generated_text": str}]`, or a list of these for a list.

        Raises:
            ValueError: for clips that cannot or may not be read, and for fields and parameters that are not known.
        """
        unknown = sorted(str(name) for name in data if name not in FIELDS)
        if unknown or "inputs" not in data:
            raise ValueError(f"A request needs 'inputs' and may have 'parameters', got {sorted(map(str, data))}.")
        parameters = data.get("parameters") or {}
        refused = sorted(str(name) for name in parameters if name not in PARAMETERS)
        if refused:
            raise ValueError(f"Unknown parameters {refused}; a request may set {sorted(PARAMETERS)}.")
        return self.pipe(data["inputs"], **parameters, allow_paths=False)
