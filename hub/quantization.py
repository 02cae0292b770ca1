"""Smaller weights by name: the ways that are measured in docs/use.md.

Which parts stay as they are is the model's business; see `modeling_salmonn.quantization_salmonn`.
"""

import os
from typing import Any, Literal

import torch
from transformers import BitsAndBytesConfig, TorchAoConfig

from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.quantization_salmonn import keep_audio_parts


Quantization = Literal["int8", "int4"]


def quantization_config(name: Quantization) -> Any:
    """What `from_pretrained` takes as its `quantization_config`.

    Args:
        name: `int8` of torchao, weights of 8 bits with a scale for each row; or `int4` of bitsandbytes, the NF4 of
            QLoRA (arXiv 2305.14314), which computes in bfloat16 on an accelerator and in float32 without one.

    Raises:
        ImportError: if the library is missing.
        ValueError: for another name.
    """
    if name == "int8":
        try:
            from torchao.quantization import Int8WeightOnlyConfig
        except ImportError as error:
            raise ImportError(_missing("torchao", name)) from error
        return keep_audio_parts(TorchAoConfig(Int8WeightOnlyConfig()))
    if name == "int4":
        try:
            import bitsandbytes  # noqa: F401
        except ImportError as error:
            raise ImportError(_missing("bitsandbytes", name)) from error
        compute = torch.bfloat16 if torch.accelerator.is_available() else torch.float32
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
        return keep_audio_parts(config)
    raise ValueError(f"There is no quantisation {name!r}; there are int8 and int4.")


def save_quantised(model: str | os.PathLike, output: str | os.PathLike, name: Quantization) -> None:
    """Write a model with smaller weights; its adapter becomes part of them, since both apart cannot be loaded again.

    Args:
        model: folder or Hub id of a SALMONN.
        output: folder for the model; the processor is left to the caller.
        name: see `quantization_config`.
    """
    quantisation = quantization_config(name)  # what is missing is told first
    plain = SalmonnForConditionalGeneration.from_pretrained(model)
    if plain.has_lora:
        plain.merge_lora()
    weights, config = plain.state_dict(), plain.config
    quantised = SalmonnForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=weights, dtype=plain.dtype, quantization_config=quantisation
    )
    quantised.generation_config = plain.generation_config
    quantised.save_pretrained(output)


def _missing(library: str, name: str) -> str:
    return (
        f"Weights in {name} need {library}, which is not installed; install the extra 'quantization' in the checkout: "
        'pip install ".[quantization]"'
    )
