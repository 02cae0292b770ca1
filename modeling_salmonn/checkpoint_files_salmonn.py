"""Files of a saved model: their names, their hashes, and what may be wrong with them before they are read.

`hashes.json` maps the name of each weight file to the hexadecimal SHA-256 of its content; `salmonn doctor` compares
them. Loading does not, since it would take longer than loading itself, but it looks for everything that is damaged so
that it cannot be read, and for NaN. Each function here whose name begins with `check` or `require` raises a
`ValueError` that names the file, what is wrong with it, and what to do.
"""

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils.sha import sha_fileobj
from peft import PeftType
from safetensors import SafetensorError, safe_open
from torch import nn

from .staged_saving_salmonn import MEND, check_content, read_json, refuse_unfinished


CONFIG_FILE, GENERATION_FILE = "config.json", "generation_config.json"
WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
CONNECTOR_FILE = "connector.safetensors"
ADAPTER_CONFIG_FILE, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_FILES = (ADAPTER_CONFIG_FILE, ADAPTER_FILE)
HASHES_FILE = "hashes.json"
# What `peft` and transformers take without a look; the first use then fails far away, or hangs.
ADAPTER_FIELDS: dict[str, tuple[type, ...]] = {
    "r": (int,),
    "lora_alpha": (int, float),
    "lora_dropout": (int, float),
    "target_modules": (str, list),
    "bias": (str,),
    "peft_type": (str,),
}
MAX_LAYERS = 10_000  # of a model whose weights are not known yet
LAYER_FIELDS = ("num_hidden_layers", "encoder_layers", "decoder_layers")
WEIGHT_SUFFIXES = (".weight", ".bias")  # the rest may be buffers, such as positions
LISTED = 5  # names spelled out before the rest is only counted


def is_own_weight_file(name: str, variant: str | None = None) -> bool:
    """Whether a save of this variant writes weights, or what belongs to them, under this name."""
    if name in (CONNECTOR_FILE, *ADAPTER_FILES, HASHES_FILE):
        return True
    suffix = f".{re.escape(variant)}" if variant else ""
    full = rf"model{suffix}(-\d{{5}}-of-\d{{5}})?\.safetensors|model\.safetensors\.index{suffix}\.json"
    return re.fullmatch(full, name) is not None


def write_hashes(folder: Path) -> None:
    """Write the SHA-256 of all weight files of a folder, and of folders within it, into its `hashes.json`."""
    hashes = {file.relative_to(folder).as_posix(): sha256(file) for file in sorted(folder.rglob("*.safetensors"))}
    (folder / HASHES_FILE).write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")


def local_folder(path: str | os.PathLike, subfolder: str = "") -> Path | None:
    """The folder that a name stands for; `None` for a Hub id."""
    folder = Path(path)
    return folder / subfolder if folder.is_dir() else None


def check_model_folder(
    folder: Path, variant: str | None = None, given: Collection[str] = (), quantised: bool = False
) -> None:
    """Make sure that what is needed of a folder of ours is there and can be read.

    Args:
        folder: a local one.
        variant: the one that is loaded, as in `model.fp16.safetensors`.
        given: options of `from_pretrained` in the place of files: `config`, `state_dict`, `gguf_file`.
        quantised: whether the given config says that the weights are.
    """
    refuse_unfinished(folder)
    config = {} if "config" in given else _read_config(folder)
    if (folder / GENERATION_FILE).is_file():
        read_json(folder / GENERATION_FILE)
    if (folder / CONNECTOR_FILE).is_file():
        check_weight_file(folder / CONNECTOR_FILE)
        require_layers(config, MAX_LAYERS, str(folder))  # before the bases, with all their tensors, are read
    elif not {"state_dict", "gguf_file"} & set(given):
        _check_full_weights(folder, variant, config, quantised)
    if all((folder / name).is_file() for name in ADAPTER_FILES):
        check_weight_file(folder / ADAPTER_FILE)
        _check_adapter_config(folder / ADAPTER_CONFIG_FILE)


def check_base_folder(folder: Path) -> None:
    """As `check_model_folder`, of the folder of a base."""
    _check_full_weights(folder, None, _read_config(folder), quantised=False)


def full_weight_names(variant: str | None) -> tuple[str, str]:
    """The file of whole weights of a variant, and the index of its shards."""
    if not variant:
        return WEIGHTS_FILE, INDEX_FILE
    return f"model.{variant}.safetensors", f"model.safetensors.index.{variant}.json"


def weight_file_names(folder: Path, variant: str | None = None) -> list[str]:
    """Files of whole weights that loading reads: one, or the shards of an index; none where there is neither.

    Raises:
        ValueError: if there is an index, but it names no files.
    """
    weights, index = full_weight_names(variant)
    if (folder / weights).is_file():
        return [weights]
    if not (folder / index).is_file():
        return []
    shards = read_json(folder / index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise ValueError(f"{folder / index} has no weight_map from names to files; {MEND}.")
    return sorted(set(shards.values()))


def check_weight_file(file: Path, floats: bool = True) -> int:
    """Read the header of a safetensors file, which tells whether the file is whole.

    Args:
        file: a safetensors file.
        floats: whether its weights must be floating-point; whole numbers would be converted in silence.

    Returns:
        The number of tensors.
    """
    check_content(file)
    try:
        with safe_open(file, "pt") as opened:
            dtypes = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118  not a dict
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is truncated or damaged ({error}); {MEND}.") from error
    whole = [name for name, dtype in dtypes.items() if name.endswith(WEIGHT_SUFFIXES) and "F" not in dtype]
    if floats and whole:
        problem = f"{listing(whole)} is {dtypes[whole[0]]}, not floating-point"
        raise ValueError(f"{file.parent}: in {file.name} {problem}; {MEND}.")
    return len(dtypes)


def require_layers(config: dict[str, Any], most: int, source: str) -> None:
    """Refuse more layers in a config than `most`, its number of tensors, before time and memory are spent on them."""
    for name, value in _layer_counts(config):
        if value > most:
            raise ValueError(
                f"The config of {source} has {name}={value}, but its weights have no more than {most} layers; correct "
                "the config, or download it again."
            )


def require_finite(weights: Iterable[tuple[str, torch.Tensor]], source: str) -> None:
    """Refuse weights that spread NaN through every answer, naming the source; see `is_finite`."""
    broken = [name for name, tensor in weights if not is_finite(tensor)]
    if broken:
        raise ValueError(
            f"The weights of {source} hold NaN or infinite values in {listing(broken)}; download or convert them "
            "again, in bfloat16 or float32 where float16 was too small for them."
        )


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; one without values here, or of whole numbers, holds none."""
    is_plain = type(tensor) in (torch.Tensor, nn.Parameter)  # neither sharded nor quantised
    if not is_plain or not tensor.is_floating_point() or tensor.is_meta or tensor.numel() == 0:
        return True
    values = tensor.detach() if tensor.element_size() > 1 else tensor.detach().float()  # float8 has no comparisons
    smallest, largest = torch.aminmax(values)  # one pass, many times as fast as isfinite; NaN is both
    return bool(smallest.isfinite() & largest.isfinite())


def sha256(file: Path) -> str:
    """Hash of a file in hexadecimal digits."""
    with file.open("rb") as opened:
        return sha_fileobj(opened).hex()


def listing(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(f"{folder} has no {CONFIG_FILE}; {MEND}, or give the folder that holds it.")
    return read_json(folder / CONFIG_FILE)


def _check_full_weights(folder: Path, variant: str | None, config: dict[str, Any], quantised: bool) -> None:
    names = weight_file_names(folder, variant)
    if not names:
        pickles = sorted(folder.glob("pytorch_model*.bin"))
        for file in pickles:
            check_content(file)
        if pickles:
            return
        missing = INDEX_FILE if any(folder.glob("model-*-of-*.safetensors")) else WEIGHTS_FILE
        if config.get("model_type") == "salmonn" and config.get("text_model_id"):
            missing = f"{missing}, nor {CONNECTOR_FILE} beside bases that are named"
        raise ValueError(f"{folder} has no {missing}; {MEND}.")
    lacking = [name for name in names if not (folder / name).is_file()]
    if lacking:
        raise ValueError(
            f"{folder} lacks {listing(lacking)} of the {len(names)} files that {full_weight_names(variant)[1]} names; "
            "download them again, or save the model again."
        )
    floats = not quantised and "quantization_config" not in config
    require_layers(config, sum(check_weight_file(folder / name, floats) for name in names), str(folder))


def _check_adapter_config(file: Path) -> None:
    config = read_json(file)
    for name, types in ADAPTER_FIELDS.items():
        value = config.get(name)
        if name in config and (not isinstance(value, types) or isinstance(value, bool)):
            expected = " or ".join(kind.__name__ for kind in types)
            raise ValueError(f"{file} has {name}={value!r}, but {expected} is needed; {MEND}.")
    targets = config.get("target_modules", [])
    if not all(isinstance(target, str) for target in targets):
        raise ValueError(f"{file} has target_modules={targets!r}, but names are needed; {MEND}.")
    if config.get("peft_type", "LORA") not in PeftType.__members__:
        raise ValueError(f"{file} has peft_type={config['peft_type']!r}, which peft does not know; correct it.")
    with safe_open(file.parent / ADAPTER_FILE, "pt") as opened:
        shapes = [opened.get_slice(key).get_shape() for key in opened.keys()]  # noqa: SIM118  not a dict
    # a rank that no side of a matrix has is a slip, which would be seen only when all layers have been made
    largest = max((size for shape in shapes for size in shape), default=0)
    rank = config.get("r", 1)
    if rank < 1 or (rank > largest and not config.get("rank_pattern")):
        raise ValueError(f"{file} has r={rank}, which is not the rank of {ADAPTER_FILE}; {MEND}.")


def _layer_counts(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, int]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _layer_counts(value, f"{prefix}{name}.")
        elif name in LAYER_FIELDS and isinstance(value, int):
            yield f"{prefix}{name}", value
