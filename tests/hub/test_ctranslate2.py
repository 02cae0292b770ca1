"""Whisper out of a CTranslate2 file: a real Whisper is written in that format and read back."""

import struct
from pathlib import Path

import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from modeling_salmonn.hub.ctranslate2 import read_ctranslate2, whisper_state_dict


FLOAT32 = 0


def text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def write_file(path: Path, arrays: dict[str, torch.Tensor], version: int = 6) -> None:
    content = struct.pack("<I", version) + text("WhisperSpec") + struct.pack("<II", 3, len(arrays))
    for name, array in arrays.items():
        data = array.detach().numpy().tobytes()
        content += text(name) + struct.pack(f"<B{array.dim()}I", array.dim(), *array.shape)
        content += struct.pack("<BI", FLOAT32, len(data)) + data
    path.write_bytes(content)


def whisper() -> WhisperForConditionalGeneration:
    sizes = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    tokens = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1, "decoder_start_token_id": 1}
    torch.manual_seed(0)
    return WhisperForConditionalGeneration(WhisperConfig(vocab_size=50, **sizes, **heads, **tokens))


def joined(state: dict[str, torch.Tensor], prefix: str, letters: str, kind: str) -> torch.Tensor:
    parts = []
    for letter in letters:
        missing = torch.zeros_like(state[f"{prefix}.q_proj.bias"])
        parts.append(state.get(f"{prefix}.{letter}_proj.{kind}", missing))
    return torch.cat(parts)


def arrays_of(model: WhisperForConditionalGeneration) -> dict[str, torch.Tensor]:
    """The names and forms that CTranslate2 gives to Whisper's weights."""
    state = {name.removeprefix("model."): value for name, value in model.state_dict().items()}
    arrays = {
        "encoder/num_heads": torch.tensor(2.0),
        "decoder/embeddings/weight": state["decoder.embed_tokens.weight"],
    }
    for side, blocks in (("encoder", ["self_attn"]), ("decoder", ["self_attn", "encoder_attn"])):
        arrays[f"{side}/position_encodings/encodings"] = state[f"{side}.embed_positions.weight"]
        for name, kind in (("gamma", "weight"), ("beta", "bias")):
            arrays[f"{side}/layer_norm/{name}"] = state[f"{side}.layer_norm.{kind}"]
        for layer in range(model.config.num_hidden_layers if side == "encoder" else 1):
            old, new = f"{side}.layers.{layer}", f"{side}/layer_{layer}"
            for block in blocks:
                place = f"{new}/{'self_attention' if block == 'self_attn' else 'attention'}"
                for name, kind in (("gamma", "weight"), ("beta", "bias")):
                    arrays[f"{place}/layer_norm/{name}"] = state[f"{old}.{block}_layer_norm.{kind}"]
                for kind in ("weight", "bias"):
                    groups = ["qkv"] if block == "self_attn" else ["q", "kv"]
                    for index, letters in enumerate(groups):
                        arrays[f"{place}/linear_{index}/{kind}"] = joined(state, f"{old}.{block}", letters, kind)
                    arrays[f"{place}/linear_{len(groups)}/{kind}"] = state[f"{old}.{block}.out_proj.{kind}"]
            for index, part in enumerate(("fc1", "fc2")):
                for kind in ("weight", "bias"):
                    arrays[f"{new}/ffn/linear_{index}/{kind}"] = state[f"{old}.{part}.{kind}"]
            for name, kind in (("gamma", "weight"), ("beta", "bias")):
                arrays[f"{new}/ffn/layer_norm/{name}"] = state[f"{old}.final_layer_norm.{kind}"]
    for conv in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            arrays[f"encoder/{conv}/{kind}"] = state[f"encoder.{conv}.{kind}"]
    return arrays


def test_whisper_comes_back_complete_and_equal(tmp_path: Path) -> None:
    model = whisper()
    write_file(tmp_path / "model.bin", arrays_of(model))
    state = whisper_state_dict(read_ctranslate2(tmp_path / "model.bin"))
    expected = model.state_dict()
    assert set(state) == set(expected) - {"proj_out.weight"}  # tied to the embeddings
    for name, value in state.items():
        assert torch.equal(value, expected[name]), name


def test_key_with_a_bias_raises() -> None:
    arrays = {"encoder/layer_0/self_attention/linear_0/bias": torch.ones(12)}
    with pytest.raises(ValueError, match="has a bias"):
        whisper_state_dict(arrays)


def test_unknown_array_raises() -> None:
    with pytest.raises(ValueError, match="encoder/gate/weight is not an array of Whisper"):
        whisper_state_dict({"encoder/gate/weight": torch.ones(2)})


def test_other_format_version_raises(tmp_path: Path) -> None:
    write_file(tmp_path / "model.bin", {}, version=5)
    with pytest.raises(ValueError, match="version 5; 6 is needed"):
        read_ctranslate2(tmp_path / "model.bin")


def test_file_that_ends_early_raises(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    write_file(path, arrays_of(whisper()))
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match="ends early"):
        read_ctranslate2(path)
