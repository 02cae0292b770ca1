"""Reads Whisper from a CTranslate2 `model.bin` (format version 6) without CTranslate2.

The file is a header, then one record per array, then aliases:

```
u32 version | string spec | u32 revision | u32 arrays
per array: string name | u8 rank | u32 sizes[rank] | u8 type | u32 bytes | data     (strings: u16 length, then bytes)
```
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch


FORMAT_VERSION = 6
DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def read_ctranslate2(path: Path) -> dict[str, torch.Tensor]:
    """All arrays of a CTranslate2 model file by name, floats as float32.

    Raises:
        ValueError: if the file is not of format version 6 or ends early.
    """
    with path.open("rb") as file:
        try:
            version = _number(file, "I")
            if version != FORMAT_VERSION:
                raise ValueError(f"{path} has CTranslate2 format version {version}; {FORMAT_VERSION} is needed.")
            _string(file)  # the kind of model
            _number(file, "I")  # and its revision
            return dict(_records(file))
        except struct.error as error:
            raise ValueError(f"{path} ends early; download it again.") from error


def whisper_state_dict(arrays: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights under the names of `WhisperForConditionalGeneration`.

    CTranslate2 joins query, key and value into one matrix; Whisper's key has no bias, so the bias of that third is
    zero and dropped.
    """
    state = {}
    for name, tensor in arrays.items():
        if tensor.dim() == 0 or name.startswith("decoder/alignment"):
            continue  # settings, not weights
        for key, part in _rename(name, tensor):
            state[f"model.{key}"] = part
    return state


def _records(file: BinaryIO) -> Iterator[tuple[str, torch.Tensor]]:
    for _ in range(_number(file, "I")):
        name = _string(file)
        shape = [_number(file, "I") for _ in range(_number(file, "B"))]
        dtype = np.dtype(DTYPES[_number(file, "B")])
        size = _number(file, "I")
        data = file.read(size)
        if len(data) != size:
            raise struct.error(name)
        array = torch.from_numpy(np.frombuffer(data, dtype).reshape(shape).copy())  # torch writes to its memory
        yield name, array.float() if array.is_floating_point() else array


def _rename(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Names in transformers for one array; a joined one gives several."""
    side, *path = name.split("/")
    kind = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}.get(path[-1], path[-1])
    match path[:-1]:
        case ["conv1" | "conv2" as conv]:
            yield f"{side}.{conv}.{kind}", tensor
        case ["embeddings"]:
            yield f"{side}.embed_tokens.{kind}", tensor
        case ["position_encodings"]:
            yield f"{side}.embed_positions.weight", tensor
        case ["layer_norm"]:
            yield f"{side}.layer_norm.{kind}", tensor
        case [layer, block, part]:
            prefix = f"{side}.layers.{layer.removeprefix('layer_')}"
            for key, piece in _rename_block(block, part, kind, tensor):
                yield f"{prefix}.{key}", piece
        case _:
            raise ValueError(f"{name} is not an array of Whisper.")


def _rename_block(block: str, part: str, kind: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    if block == "ffn":
        yield {"layer_norm": "final_layer_norm", "linear_0": "fc1", "linear_1": "fc2"}[part] + f".{kind}", tensor
        return
    module = {"self_attention": "self_attn", "attention": "encoder_attn"}[block]
    # Which projections are one matrix; of attention to the encoder the query stands alone.
    joined = {("self_attn", "linear_0"): "qkv", ("encoder_attn", "linear_0"): "q", ("encoder_attn", "linear_1"): "kv"}
    if part == "layer_norm":
        yield f"{module}_layer_norm.{kind}", tensor
    elif (module, part) not in joined:
        yield f"{module}.out_proj.{kind}", tensor
    else:
        letters = joined[module, part]
        for letter, piece in zip(letters, tensor.chunk(len(letters)), strict=True):
            if (letter, kind) != ("k", "bias"):
                yield f"{module}.{letter}_proj.{kind}", piece.contiguous()
            elif piece.abs().max() > 0:
                raise ValueError(f"The key of {module} has a bias, which Whisper's has not.")


def _number(file: BinaryIO, code: str) -> int:
    return struct.unpack(f"<{code}", file.read(struct.calcsize(code)))[0]


def _string(file: BinaryIO) -> str:
    return file.read(_number(file, "H")).rstrip(b"\0").decode()
