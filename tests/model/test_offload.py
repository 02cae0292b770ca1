"""Parts that lie in main memory or on disk are loaded when they are called: answers stay the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from conftest import SAMPLING_RATE, make_clip, tiny_config, tiny_model, tiny_processor
from torch import nn

from modeling_salmonn import BeatsForAudioClassification, BeatsModel, SalmonnForConditionalGeneration


CONFIG = tiny_config(segment_seconds=[2, 5], trim_audio_tokens=True)


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    clips = [[make_clip(1.0), make_clip(3.0, seed=1)], [make_clip(1.2, seed=2)]]
    return dict(tiny_processor(CONFIG)(text=["Two?", "One?"], audio=clips, sampling_rate=SAMPLING_RATE))


@pytest.fixture(scope="module")
def expected(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and answer of the model as it is."""
    model = tiny_model(CONFIG)
    with torch.no_grad():
        return model(**inputs).logits, model.generate(**inputs, max_new_tokens=3)


def assert_answers(
    model: nn.Module, inputs: dict[str, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor]
) -> None:
    logits, answer = expected
    with torch.no_grad():
        assert torch.allclose(model(**inputs).logits, logits, atol=1e-5)
    assert model.generate(**inputs, max_new_tokens=3).tolist() == answer.tolist()


def map_with_part_on_disk(model: nn.Module, part: str) -> dict[str, str]:
    """A device map in which everything but one module is on the CPU."""
    holders = ["", *(part[:end] for end, letter in enumerate(part) if letter == ".")]
    places = {}
    for holder in holders:
        module, start = model.get_submodule(holder), f"{holder}." if holder else ""
        names = [*dict(module.named_children()), *dict(module.named_parameters(recurse=False))]
        places |= {f"{start}{name}": "cpu" for name in names if f"{start}{name}" not in holders}
    return places | {part: "disk"}


def parts_with_weights() -> list[str]:
    model = tiny_model(CONFIG)
    return [name for name, module in model.named_modules() if name and next(module.parameters(), None) is not None]


@pytest.mark.filterwarnings("ignore:The following device_map keys")  # bare parameters
def test_every_part_may_lie_on_disk(
    inputs: dict[str, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    logits, _ = expected
    different = {}
    # the layers of the language model are the library's own, and all layers of an encoder are alike
    parts = [name for name in parts_with_weights() if not name.startswith("model.language_model.")]
    parts = [name for name in parts if ".layers.1" not in name and name.partition(".layers.0.")[2].count(".") == 0]
    assert {"model.speech_encoder.embed_positions", "model.qformer", "lm_head"} <= set(parts)
    for index, part in enumerate(parts):
        model = tiny_model(CONFIG)
        places = map_with_part_on_disk(model, part)
        model = dispatch_model(model, places, main_device="cpu", offload_dir=str(tmp_path / str(index)))
        with torch.no_grad():
            found = model(**inputs).logits
        if not torch.allclose(found, logits, atol=1e-5):
            different[part] = (found - logits).abs().max()
    assert different == {}


def test_cpu_offload_keeps_the_answer(
    inputs: dict[str, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor]
) -> None:
    assert_answers(cpu_offload(tiny_model(CONFIG), execution_device="cpu"), inputs, expected)


def test_disk_offload_keeps_the_answer(
    inputs: dict[str, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    assert_answers(disk_offload(tiny_model(CONFIG), str(tmp_path), execution_device="cpu"), inputs, expected)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.8])
def test_too_little_memory_keeps_the_answer(
    share: float, inputs: dict[str, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    model = tiny_model(CONFIG)
    model.save_pretrained(tmp_path / "model")
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    options: dict[str, Any] = {"device_map": "auto", "max_memory": {"cpu": int(share * size)}}
    loaded = SalmonnForConditionalGeneration.from_pretrained(
        tmp_path / "model", offload_folder=tmp_path / "offload", **options
    )
    assert "disk" in set(map(str, loaded.hf_device_map.values())) or share == 0
    assert_answers(loaded, inputs, expected)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.6])
def test_beats_with_too_little_memory_keeps_its_answer(
    share: float, inputs: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = BeatsForAudioClassification(CONFIG.audio_config).eval()
    model.save_pretrained(tmp_path / "model")
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    features = (inputs["audio_input_features"], inputs["audio_input_features_mask"])
    loaded = BeatsForAudioClassification.from_pretrained(
        tmp_path / "model",
        device_map="auto",
        max_memory={"cpu": int(share * size)},
        offload_folder=tmp_path / "offload",
    )
    with torch.no_grad():
        assert torch.allclose(loaded(*features).logits, model(*features).logits, atol=1e-5)


def test_modules_with_bare_parameters_are_not_split() -> None:
    model = tiny_model(CONFIG)
    whole = [name for name, module in model.named_modules() if type(module).__name__ in model._no_split_modules]
    bare = [
        name
        for name, module in model.named_modules()
        if dict(module.named_parameters(recurse=False)) and dict(module.named_children())
    ]
    assert {"model.qformer", "model.audio_encoder.position_conv.conv"} <= set(bare)
    for name in bare:
        assert any(name == part or name.startswith(f"{part}.") for part in whole), name
    assert BeatsModel._no_split_modules == ["BeatsLayer", "BeatsPositionConv"]
