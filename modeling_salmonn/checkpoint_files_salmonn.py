"""Files of a saved model: their names, their hashes, and what may be wrong with them before they are read.

`hashes.json` maps the name of each weight file to the hexadecimal SHA-256 of its content; `salmonn doctor` compares
them. Loading does not, since it would take longer than loading itself, but it looks for everything that is damaged so
that it cannot be read, and for NaN.
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

from .staged_saving_salmonn import refuse_unfinished


CONFIG_FILE = "config.json"
WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
CONNECTOR_FILE = "connector.safetensors"
ADAPTER_CONFIG_FILE, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
HASHES_FILE = "hashes.json"
LFS_HEADER = b"version https://git-lfs.github.com/spec/v1"
GENERATION_FILE = "generation_config.json"
# What `peft` and transformers take without a look; the first use then fails far away, or hangs.
ADAPTER_FIELDS: dict[str, tuple[type, ...]] = {
    "r": (int,),
    "lora_alpha": (int, float),
    "lora_dropout": (int, float),
    "target_modules": (str, list),
    "bias": (str,),
    "peft_type": (str,),
}
MOST_LAYERS = 10_000  # of a model whose weights are not known yet
LAYER_FIELDS = ("num_hidden_layers", "encoder_layers", "decoder_layers")
MEND = "download or save it again"
WEIGHT_SUFFIXES = (".weight", ".bias")  # the rest may be buffers, such as positions
LISTED = 5  # names spelled out before the rest is only counted


def is_own_weight_file(name: str, variant: str | None = None) -> bool:
    """Whether a save of this variant writes weights, or what belongs to them, under this name."""
    suffix = f".{re.escape(variant)}" if variant else ""
    if name in (CONNECTOR_FILE, ADAPTER_CONFIG_FILE, ADAPTER_FILE, HASHES_FILE):
        return True
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


def check_model_folder(folder: Path, variant: str | None = None, given: Collection[str] = ()) -> None:
    """Make sure that what is needed of a folder of ours is there and can be read.

    Args:
        folder: a local one.
        variant: the one that is loaded, as in `model.fp16.safetensors`.
        given: options of `from_pretrained` in the place of files: `config`, `state_dict`, `gguf_file`.

    Raises:
        ValueError: naming the file, what is wrong with it, and what to do.
    """
    refuse_unfinished(folder)
    if "config" not in given and not (folder / CONFIG_FILE).is_file():
        raise ValueError(f"{folder} has no {CONFIG_FILE}; {MEND}, or give the folder that holds it.")
    config = {} if "config" in given else _read_if_there(folder / CONFIG_FILE)
    _read_if_there(folder / GENERATION_FILE)
    if (folder / CONNECTOR_FILE).is_file():
        check_weight_file(folder / CONNECTOR_FILE)
        require_floats(folder / CONNECTOR_FILE)
        require_layers(config, MOST_LAYERS, str(folder))  # before the bases, with all their tensors, are read
    elif not {"state_dict", "gguf_file"} & set(given):
        _check_full_weights(folder, variant, config)
    if (folder / ADAPTER_FILE).is_file() and (folder / ADAPTER_CONFIG_FILE).is_file():
        check_weight_file(folder / ADAPTER_FILE)
        require_floats(folder / ADAPTER_FILE)
        _check_adapter_config(folder / ADAPTER_CONFIG_FILE)


def check_base_folder(folder: Path) -> None:
    """As `check_model_folder`, of the folder of a base.

    Raises:
        ValueError: naming the file, what is wrong with it, and what to do.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(f"{folder} has no {CONFIG_FILE}; {MEND}, or give the folder that holds it.")
    _check_full_weights(folder, None, read_json(folder / CONFIG_FILE))


def _check_full_weights(folder: Path, variant: str | None, config: dict[str, Any]) -> None:
    files = check_weight_files(folder, variant)
    if files:
        require_layers(config, sum(files.values()), str(folder))
        for file in files if "quantization_config" not in config else ():
            require_floats(file)
    elif not any(folder.glob("*.bin")):
        missing = INDEX_FILE if any(folder.glob("model-*-of-*.safetensors")) else WEIGHTS_FILE
        if config.get("model_type") == "salmonn" and config.get("text_model_id"):
            missing = f"{missing}, nor {CONNECTOR_FILE} beside bases that are named"
        raise ValueError(f"{folder} has no {missing}; {MEND}.")


def check_weight_files(folder: Path, variant: str | None = None) -> dict[Path, int]:
    """Check the file, or the shards of an index, that transformers reads from a folder.

    Returns:
        The number of tensors in each of them; empty if the folder has no such file.

    Raises:
        ValueError: naming the file, what is wrong with it, and what to do.
    """
    weights, index = WEIGHTS_FILE, INDEX_FILE
    if variant:
        weights, index = f"model.{variant}.safetensors", f"model.safetensors.index.{variant}.json"
    if (folder / weights).is_file():
        return {folder / weights: check_weight_file(folder / weights)}
    if not (folder / index).is_file():
        for file in sorted(folder.glob("pytorch_model*.bin")):
            check_content(file)
        return {}
    shards = read_json(folder / index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise ValueError(f"{folder / index} has no weight_map from names to files; {MEND}.")
    names = sorted(set(shards.values()))
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ValueError(
            f"{folder} lacks {listing(missing)} of the {len(names)} files that {index} names; download them again, "
            "or save the model again."
        )
    return {folder / name: check_weight_file(folder / name) for name in names}


def check_weight_file(file: Path) -> int:
    """Read the header of a safetensors file, which tells whether the file is whole.

    Returns:
        The number of tensors.

    Raises:
        ValueError: if the file is empty, a Git-LFS pointer, truncated or no safetensors file.
    """
    check_content(file)
    try:
        with safe_open(file, "pt") as opened:
            return len(opened.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is truncated or damaged ({error}); {MEND}.") from error


def require_floats(file: Path) -> None:
    """Make sure that a file that can be read holds no whole numbers in the place of weights: they would be converted.

    Raises:
        ValueError: naming the tensors.
    """
    with safe_open(file, "pt") as opened:
        dtypes = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118  not a dict
    whole = [name for name, dtype in dtypes.items() if name.endswith(WEIGHT_SUFFIXES) and "F" not in dtype]
    if whole:
        problem = f"{listing(whole)} is {dtypes[whole[0]]}, not floating-point"
        raise ValueError(f"{file.parent}: in {file.name} {problem}; {MEND}.")


def check_content(file: Path) -> None:
    """Make sure that a file has content of its own.

    Raises:
        ValueError: if it is empty or a Git-LFS pointer.
    """
    with file.open("rb") as opened:
        start = opened.read(len(LFS_HEADER))
    if not start:
        raise ValueError(f"{file} is empty; {MEND}.")
    if start == LFS_HEADER:
        raise ValueError(f"{file} is a Git-LFS pointer, not the content; run `git lfs pull`, or {MEND}.")


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        ValueError: if it holds anything else, naming the file.
    """
    check_content(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as JSON ({error}); {MEND}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, but a JSON object is needed; {MEND}.")
    return content


def require_layers(config: dict[str, Any], most: int, source: str) -> None:
    """Refuse a number of layers that the weights cannot have, before time and memory are spent on making them.

    Args:
        config: values of a config, with those of its parts.
        most: as many as there can be: the number of tensors.
        source: named in the error.

    Raises:
        ValueError: if some part has more layers.
    """
    for name, value in _layer_counts(config):
        if value > most:
            raise ValueError(
                f"The config of {source} has {name}={value}, but its weights have no more than {most} layers; correct "
                "the config, or download it again."
            )


def require_finite(weights: Iterable[tuple[str, torch.Tensor]], source: str) -> None:
    """Refuse weights that spread NaN through every answer.

    Args:
        weights: names and tensors; those without values here (offloaded, sharded, quantised) are left out.
        source: named in the error.

    Raises:
        ValueError: naming the tensors that hold NaN or infinity.
    """
    if broken := [name for name, tensor in weights if not is_finite(tensor)]:
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


def _read_if_there(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _layer_counts(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, int]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _layer_counts(value, f"{prefix}{name}.")
        elif name in LAYER_FIELDS and isinstance(value, int):
            yield f"{prefix}{name}", value


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
    largest = max((size for shape in shapes for size in shape), default=0)
    if config.get("r", 1) < 1 or (config.get("r", 1) > largest and not config.get("rank_pattern")):
        raise ValueError(f"{file} has r={config['r']}, which is not the rank of {ADAPTER_FILE}; {MEND}.")


def sha256(file: Path) -> str:
    """Hash of a file in hexadecimal digits."""
    with file.open("rb") as opened:
        return sha_fileobj(opened).hex()


def listing(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


__all__ = [
    "check_base_folder",
    "check_model_folder",
    "is_finite",
    "is_own_weight_file",
    "listing",
    "local_folder",
    "read_json",
    "require_finite",
    "require_floats",
    "require_layers",
    "sha256",
    "write_hashes",
]
