"""Smaller weights by name: the ways that are measured in docs/use.md.

Which parts stay as they are is the model's business; see `modeling_salmonn.quantization_salmonn`.
"""

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


def quantised(plain: SalmonnForConditionalGeneration, name: Quantization) -> SalmonnForConditionalGeneration:
    """A model with smaller weights, to be saved before it answers.

    The weights of bitsandbytes are rounded once more when they first answer on some CPUs.

    Args:
        plain: without adapter, which could not be loaded again from one folder with such weights; left as it is.
        name: see `quantization_config`.
    """
    small: SalmonnForConditionalGeneration = SalmonnForConditionalGeneration.from_pretrained(
        None,
        config=plain.config,
        state_dict=plain.state_dict(),
        dtype=plain.dtype,
        quantization_config=quantization_config(name),
    )
    small.generation_config = plain.generation_config
    return small


def _missing(library: str, name: str) -> str:
    return (
        f"Weights in {name} need {library}, which is not installed; install the extra 'quantization' in the checkout: "
        'pip install ".[quantization]"'
    )
