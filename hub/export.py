"""Export of a model into a folder that serving engines load by `trust_remote_code`, without this package.

Engines such as vLLM differ from transformers in three ways, which the folder takes care of:
- they read every safetensors file beside the weights: the adapter is merged, or lies in a folder of its own
- their `AutoModel` is the model without its head
- every id of a prompt lies within the vocabulary: the table of embeddings gets a row for the placeholder

A folder with quantised weights is for transformers, and only the first holds for it: engines quantise by themselves.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from modeling_salmonn.checkpoint_files_salmonn import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    CONFIG_FILE,
    HASHES_FILE,
    sha256,
)
from modeling_salmonn.configuration_salmonn import SalmonnConfig
from modeling_salmonn.data.files import write_json
from modeling_salmonn.hub import endpoint_handler
from modeling_salmonn.hub.companions import companion_files
from modeling_salmonn.hub.model_card import CARD_FILE, write_model_card
from modeling_salmonn.hub.quantization import Quantization, quantised, quantization_config
from modeling_salmonn.hub.saved_folder import require_new_folder, require_salmonn
from modeling_salmonn.lora_scale_salmonn import checked_scale
from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.processing.processing_salmonn import SalmonnProcessor
from modeling_salmonn.staged_saving_salmonn import read_json, replace_files


ADAPTER_FOLDER = "adapter"
BASE_CLASS = "modeling_salmonn.SalmonnModel"
GENERATING_CLASS = "AutoModelForMultimodalLM"


def export_model(
    model: str,
    output: str | os.PathLike,
    *,
    adapter_apart: bool = False,
    lora_scales: Sequence[float] = (),
    dtype: str | None = None,
    quantize: Quantization | None = None,
) -> list[Path]:
    """Write a serving folder, with card and licences, and with the recorded answers where it must give them again.

    Args:
        model: folder or Hub id of a SALMONN model.
        output: folder to create; nothing is left in it after an error.
        adapter_apart: keep the adapter out of the weights, in the folder `adapter`, so that it is chosen per request.
        lora_scales: scales to write such folders for besides the trained one, `adapter@2.0` for 2.0.
        dtype: "float32", "bfloat16" or "float16" of the weights; that of `model` if not given.
        quantize: smaller weights of the language model; see `quantization_config`. `AutoModel` then is the model with
            its head, as in every saved folder.

    Returns:
        The folders of the adapters.

    Raises:
        ValueError: if `output` holds files, there is no adapter to keep apart or to scale, a scale is 0, the model is
            quantised already, or its recorded answers are damaged.
        ImportError: if the library for `quantize` is missing.
    """
    output = Path(output)
    _require_exportable(model, output, adapter_apart, lora_scales)
    if quantize is not None:
        quantization_config(quantize)  # a missing library is told before the model is loaded
    answers_alike = dtype is None and quantize is None and not adapter_apart
    companions = companion_files(model, with_answers=answers_alike)
    source = SalmonnForConditionalGeneration.from_pretrained(model, dtype=dtype or "auto")
    processor = SalmonnProcessor.from_pretrained(model)
    if adapter_apart and not source.has_lora:
        raise ValueError(f"{model} has no adapter to keep apart; leave --adapter-apart out.")
    with replace_files(output) as folder:
        adapters = []
        if adapter_apart:
            adapters = _save_adapters(source, folder, lora_scales)
            source._forget_adapters()
        elif source.has_lora:
            source.merge_lora()
        if quantize is None:
            give_placeholder_a_row(source)
            source.save_pretrained(folder)
            _name_base_class(folder / CONFIG_FILE)
        else:
            quantised(source, quantize).save_pretrained(folder)
        processor.save_pretrained(folder)
        _add_hashes(folder, adapters)
        _copy_companions(companions, folder)
        if not (folder / CARD_FILE).exists():
            write_model_card(folder, output.name, source.config)
        for file in folder.rglob("*.safetensors"):  # written for the owner alone, whereas servers run as others
            file.chmod(0o644)
    return [output / name for name in adapters]


def _require_exportable(model: str, output: Path, adapter_apart: bool, lora_scales: Sequence[float]) -> None:
    """Refuse what the files and the options tell before the model is loaded."""
    require_new_folder(output)
    require_salmonn(model)
    if lora_scales and not adapter_apart:
        raise ValueError("A merged adapter has one scale, the trained one; scales need --adapter-apart.")
    if any(checked_scale(scale) == 0 for scale in lora_scales):
        raise ValueError("Scale 0 is the model without its adapter: ask for the served model itself.")
    if getattr(SalmonnConfig.from_pretrained(model), "quantization_config", None) is not None:
        raise ValueError(
            f"{model} is quantised already (quantization_config in its {CONFIG_FILE}) and cannot be written again; "
            "export the model that it was made of."
        )


def give_placeholder_a_row(model: SalmonnForConditionalGeneration) -> None:
    """Grow the table of embeddings so that the audio placeholder lies within it; answers stay as they are.

    New rows are the mean of all others. So are their logits, which a greedy choice therefore never takes, and a
    sampled one less often than an average token: the exponential of a mean is below the mean of the exponentials.

    Args:
        model: without adapter; changed in place.
    """
    text, needed = model.config.text_config, model.config.audio_token_id + 1
    if needed <= text.vocab_size:
        return
    embeddings, head = model.get_input_embeddings(), model.lm_head
    is_tied = head.weight is embeddings.weight
    embeddings.weight = _with_mean_rows(embeddings.weight, needed)
    embeddings.num_embeddings = needed
    head.weight = embeddings.weight if is_tied else _with_mean_rows(head.weight, needed)
    head.out_features = needed
    text.vocab_size = needed


def _with_mean_rows(table: torch.Tensor, rows: int) -> nn.Parameter:
    mean = table.detach().float().mean(0, keepdim=True).to(table.dtype)
    return nn.Parameter(torch.cat([table.detach(), mean.expand(rows - len(table), -1)]), requires_grad=False)


def _save_adapters(model: SalmonnForConditionalGeneration, folder: Path, scales: Sequence[float]) -> list[str]:
    """Write the active adapter, at the trained scale and at each other one; returns the names of the folders."""
    (name,) = model.active_adapters()
    folders: dict[str, float] = {ADAPTER_FOLDER: model.config.lora_scaling}
    folders |= {f"{ADAPTER_FOLDER}@{float(scale)}": scale for scale in scales}
    for folder_name, scale in folders.items():
        model._save_adapter(folder / folder_name, name, model.state_dict())
        file = folder / folder_name / ADAPTER_CONFIG_FILE
        settings = read_json(file)
        # engines know no other way to a scale than alpha / r
        settings |= {"lora_alpha": _whole(scale * settings["r"]), "use_rslora": False}
        # layers with ranks of their own have the same scale, as all layers of an adapter
        ranks = settings.get("rank_pattern") or {}
        settings["alpha_pattern"] = {pattern: _whole(scale * rank) for pattern, rank in ranks.items()}
        write_json(file, settings)
    return list(folders)


def _whole(number: float) -> float:
    """The number, without a decimal point where it needs none."""
    return int(number) if number == int(number) else number


def _add_hashes(folder: Path, adapters: Sequence[str]) -> None:
    """Add those of the adapters to the hashes that were written with the weights."""
    hashes = read_json(folder / HASHES_FILE)
    for name in adapters:
        file = f"{name}/{ADAPTER_FILE}"
        hashes[file] = sha256(folder / file)
    write_json(folder / HASHES_FILE, hashes)


def _name_base_class(file: Path) -> None:
    """Have `AutoModel` be the model without its head, and what generates answers another of the auto classes."""
    config = read_json(file)
    config["auto_map"]["AutoModel"] = BASE_CLASS
    for task in config.get("custom_pipelines", {}).values():
        task["pt"] = [GENERATING_CLASS]
    write_json(file, config)


def _copy_companions(companions: Mapping[str, Path], folder: Path) -> None:
    """Copy what goes along with the weights, and what Inference Endpoints look for."""
    shutil.copyfile(str(endpoint_handler.__file__), folder / "handler.py")
    for name, file in companions.items():
        copy = folder / name
        if not copy.exists():  # whatever a clip is called
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
