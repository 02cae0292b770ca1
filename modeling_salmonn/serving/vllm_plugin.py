"""Tells vLLM of the model: its entry point `vllm.general_plugins` is `register`, which every process of vLLM calls."""

ARCHITECTURE = "SalmonnForConditionalGeneration"


def register() -> None:
    """Have vLLM take `SalmonnForVllm` for SALMONN; by name, since the class needs all of vLLM."""
    from vllm import ModelRegistry  # an optional dependency, in an environment of its own

    ModelRegistry.register_model(ARCHITECTURE, "modeling_salmonn.serving.vllm_model:SalmonnForVllm")
