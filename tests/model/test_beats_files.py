"""Official BEATs files with a `cfg` that cannot be used: the file, the entry and what is needed are named."""

from pathlib import Path
from typing import Any

import pytest
import torch

from modeling_salmonn.base_weights_salmonn import beats_config_from_official, read_official_beats


CFG: dict[str, Any] = {
    "encoder_embed_dim": 48,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_embed_dim": 96,
    "embed_dim": 32,
    "input_patch_size": 16,
    "conv_pos": 16,
    "conv_pos_groups": 16,
    "num_buckets": 320,
    "max_distance": 800,
    "gru_rel_pos": True,
    "deep_norm": True,
    "dropout": 0,
    "activation_fn": "gelu",
    "encoder_layerdrop": 0.05,
}


def test_entries_become_fields() -> None:
    config = beats_config_from_official(CFG)
    assert (config.hidden_size, config.num_hidden_layers, config.patch_embed_size) == (48, 2, 32)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("encoder_layers", "2"),
        ("encoder_layers", 2.0),
        ("embed_dim", None),
        ("conv_pos", True),
        ("gru_rel_pos", "yes"),
        ("layer_norm_first", 0),
        ("dropout", "0.1"),
        ("activation_fn", 3),
        ("predictor_class", [527]),
    ],
)
def test_entry_of_another_type_raises(name: str, value: Any, tmp_path: Path) -> None:
    torch.save({"cfg": CFG | {name: value}, "model": {}}, tmp_path / "beats.pt")
    with pytest.raises(ValueError, match=rf"beats\.pt holds no BEATs .* has {name}=.*; give an official BEATs file"):
        read_official_beats(tmp_path / "beats.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"cfg": {"embed_dim": 3}, "model": {}},
            "lacks encoder_embed_dim, encoder_layers, .*; give an official BEATs",
        ),
        ({"cfg": [1], "model": {}}, "The cfg of a BEATs checkpoint is a list, but it needs to be a dict"),
        ({"cfg": None, "model": {}}, "The cfg of a BEATs checkpoint is a NoneType"),
        ({"cfg": CFG, "model": [1]}, "has a list as 'model', but it needs to be a dict"),
        ({"cfg": CFG | {"encoder_attention_heads": 5}, "model": {}}, "holds no BEATs that can be used"),
    ],
)
def test_file_of_another_form_raises(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "beats.pt")
    with pytest.raises(ValueError, match=rf"beats\.pt .*{message}"):
        read_official_beats(tmp_path / "beats.pt")
