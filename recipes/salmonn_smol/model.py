"""New generations of salmonn-smol: an untrained model on its bases, and what is shipped of a trained one."""

import json
import shutil
import tempfile
from pathlib import Path

import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, WhisperConfig

from modeling_salmonn.base_weights_salmonn import load_base_weights
from modeling_salmonn.checkpoint_files_salmonn import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    CONFIG_FILE,
    CONNECTOR_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
)
from modeling_salmonn.configuration_salmonn import SalmonnConfig
from modeling_salmonn.hub.assembly import assemble_model
from modeling_salmonn.hub.build_smol import smol_generation_config, smol_processor
from modeling_salmonn.hub.saved_folder import GOLDEN_FILE
from modeling_salmonn.hub.smol_bases import SMOLLM2_ID, WHISPER_ID, fetch_bases
from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.processing.processing_salmonn import SalmonnProcessor
from modeling_salmonn.weight_names_salmonn import CONNECTOR_PREFIXES


SETTINGS = json.loads(Path(__file__).with_name("config.json").read_text())
SHIPPED_PREFIXES = (*CONNECTOR_PREFIXES, "model.audio_encoder.")


def write_new_smol(bases: Path, folder: Path, seed: int = 0) -> None:
    """Write the untrained salmonn-smol that stage 1 starts from.

    Args:
        bases: folder of `fetch_bases`; the model names the two in it.
        folder: folder to write to.
        seed: of the connector.
    """
    whisper, smollm2 = (path.absolute() for path in fetch_bases(bases))
    text_config = AutoConfig.from_pretrained(smollm2)
    own = {
        "speech_config": WhisperConfig.from_pretrained(whisper).to_dict(),
        "text_config": text_config,
        "audio_token_id": text_config.vocab_size,
        "speech_model_id": str(whisper),
        "text_model_id": str(smollm2),
    }
    config = SalmonnConfig(**(SETTINGS | own))
    weights = load_base_weights(config, torch.float32)
    torch.manual_seed(seed)
    model = assemble_model(config, weights, torch.float32)
    model.generation_config = smol_generation_config(config)
    model.save_pretrained(folder)
    smol_processor(config, smollm2).save_pretrained(folder)


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
    whole = [name for name in (WEIGHTS_FILE, INDEX_FILE) if (shipped / name).exists()]
    if whole:
        raise ValueError(
            f"{shipped} has {whole[0]}: it holds a whole model, not shipped weights; give another folder."
        )
    model = SalmonnForConditionalGeneration.from_pretrained(trained, dtype=torch.float32).eval()
    if model.config.speech_model_id is None:
        raise ValueError(f"The speech encoder of {trained} was trained, but is not shipped; keep it frozen.")
    # Not the folders they lay in; the Hub's language model has other values than the package's, which are of 4 bits.
    model.config.update({"speech_model_id": WHISPER_ID, "text_model_id": None})
    model.config.text_config.name_or_path = SMOLLM2_ID
    model.generation_config = smol_generation_config(model.config)
    _round_to_half(model)
    connector = {name: value for name, value in model.state_dict().items() if name.startswith(SHIPPED_PREFIXES)}
    shipped.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:  # it gets the Hub code and the bases too
        saved = Path(scratch)
        model.save_pretrained(saved)
        for name in (CONFIG_FILE, ADAPTER_CONFIG_FILE):
            shutil.copy(saved / name, shipped / name)
        _save_half(connector, shipped / CONNECTOR_FILE)
        _save_half(load_file(saved / ADAPTER_FILE), shipped / ADAPTER_FILE)
    if (shipped / GOLDEN_FILE).is_file():
        _answer_golden(model, SalmonnProcessor.from_pretrained(trained), shipped)


def _round_to_half(model: SalmonnForConditionalGeneration) -> None:
    """What is shipped gets the values that it will have when it is loaded again."""
    for name, parameter in model.named_parameters():
        if name.startswith(SHIPPED_PREFIXES) or ".lora_" in name:
            halved = parameter.data.half()
            if not halved.isfinite().all():
                raise ValueError(f"{name} has values beyond half precision; train with a smaller learning rate.")
            parameter.data = halved.float()


def _save_half(tensors: dict[str, torch.Tensor], file: Path) -> None:
    halved = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
    save_file(halved, file, metadata={"format": "pt"})


def _answer_golden(model: SalmonnForConditionalGeneration, processor: SalmonnProcessor, shipped: Path) -> None:
    content = json.loads((shipped / GOLDEN_FILE).read_text())
    for case in track(content["cases"], description="Golden answers"):
        inputs = processor(text=case["text"], audio=str(shipped / case["audio"]))
        output = model.generate(**inputs)
        answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        case["answer"] = answer.strip()
    (shipped / GOLDEN_FILE).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
