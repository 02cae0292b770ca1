"""Adapters that name their base: what `AutoModel` then loads, from the Hub and from folders."""

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from hub_server import HubServer
from huggingface_hub import snapshot_download
from model_bases import randomise_adapter, save_bases
from peft import LoraConfig, get_peft_model
from saved_folders import ADAPTER, ADAPTER_CONFIG, CONNECTOR, assert_loads_equal
from transformers import AutoModel

from modeling_salmonn import SalmonnConfig, SalmonnForConditionalGeneration


BASE, TUNED, ALONE = "me/base", "me/tuned", "other/adapter"

pytestmark = pytest.mark.usefixtures("own_caches")


def differing(first: torch.nn.Module, second: torch.nn.Module) -> set[str]:
    """Weights that differ, without the name of the adapter."""
    one, other = first.state_dict(), second.state_dict()
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


def named_folder(model: SalmonnForConditionalGeneration, folder: Path, base: str, **options: Any) -> Path:
    """The model as it is on the Hub, with an adapter that names a base."""
    model.config.name_or_path = base
    model.save_pretrained(folder, **options)
    assert json.loads((folder / ADAPTER_CONFIG).read_text())["base_model_name_or_path"] == base
    return folder


def adapter_alone(folder: Path, copy: Path) -> Path:
    copy.mkdir()
    for name in (ADAPTER, ADAPTER_CONFIG):
        shutil.copy(folder / name, copy / name)
    return copy


def original(config: SalmonnConfig, bases: Path | None = None) -> SalmonnForConditionalGeneration:
    """A model with an adapter, and with bases in folders that it names if there is a place for them."""
    model = tiny_model(deepcopy(config))
    if bases is not None:
        model.config.update(save_bases(model, bases))
    model.add_lora()
    randomise_adapter(model)
    return model


@pytest.fixture
def base(bucket_config: SalmonnConfig, hub: HubServer, tmp_path: Path) -> SalmonnForConditionalGeneration:
    """A model on the Hub, as `push_to_hub` leaves it there."""
    model = original(bucket_config)
    hub.add_folder(BASE, named_folder(model, tmp_path / "base", BASE))
    return model


@pytest.fixture
def tuned(base: SalmonnForConditionalGeneration) -> SalmonnForConditionalGeneration:
    """The model from the Hub, with another adapter and another connector."""
    model: SalmonnForConditionalGeneration = AutoModel.from_pretrained(BASE)
    randomise_adapter(model, seed=2)
    with torch.no_grad():
        model.model.projector.weight.add_(1)
    assert len(differing(model, base)) > 1
    return model


@pytest.mark.parametrize("revision", [None, "v2"])
def test_connector_of_another_repository_is_never_loaded(
    revision: str | None, tuned: SalmonnForConditionalGeneration, hub: HubServer, tmp_path: Path
) -> None:
    tuned.save_pretrained(tmp_path / "tuned")
    repository = hub.add_folder(TUNED, tmp_path / "tuned")
    for there in (repository, hub.repositories[BASE]):
        there.branches["v2"] = there.branches["main"]
    with pytest.raises(ValueError, match=rf"{TUNED} has weights of its own \(model.safeten") as told:
        AutoModel.from_pretrained(TUNED, revision=revision)
    assert f"names {BASE} as the base" in str(told.value)
    assert f"Set base_model_name_or_path to '{TUNED}'" in str(told.value)
    loaded = SalmonnForConditionalGeneration.from_pretrained(TUNED, revision=revision)
    assert differing(loaded, tuned) == set()
    downloaded = snapshot_download(TUNED, revision=revision)
    assert differing(AutoModel.from_pretrained(downloaded), tuned) == set()
    hub.add_folder("me/mended", named_folder(tuned, tmp_path / "mended", "me/mended"))
    assert differing(AutoModel.from_pretrained("me/mended"), tuned) == set()


def test_adapter_only_repository_that_names_another_one_raises(
    bucket_config: SalmonnConfig, hub: HubServer, tmp_path: Path
) -> None:
    model = original(bucket_config, tmp_path / "bases")
    hub.add_folder(BASE, named_folder(model, tmp_path / "base", BASE, adapter_only=True))
    assert differing(AutoModel.from_pretrained(BASE), model) == set()
    randomise_adapter(model, seed=2)
    hub.add_folder(TUNED, named_folder(model, tmp_path / "tuned", BASE, adapter_only=True))
    with pytest.raises(ValueError, match=rf"{TUNED} has weights of its own \({CONNECTOR}\)"):
        AutoModel.from_pretrained(TUNED)


def test_renamed_repository_is_found_by_its_former_name(base: SalmonnForConditionalGeneration, hub: HubServer) -> None:
    hub.repositories["me/renamed"] = hub.repositories[BASE]  # the Hub answers to both names
    assert differing(AutoModel.from_pretrained("me/renamed"), base) == set()


@pytest.mark.parametrize("is_local", [False, True], ids=["hub", "folder"])
@pytest.mark.parametrize("adapter_only", [False, True], ids=["full", "adapter-only"])
def test_adapter_alone_takes_the_place_of_that_of_its_base(
    adapter_only: bool, is_local: bool, bucket_config: SalmonnConfig, hub: HubServer, tmp_path: Path
) -> None:
    model = original(bucket_config, tmp_path / "bases")
    hub.add_folder(BASE, named_folder(model, tmp_path / "base", BASE, adapter_only=adapter_only))
    randomise_adapter(model, seed=2)
    alone = adapter_alone(named_folder(model, tmp_path / "other", BASE), tmp_path / "alone")
    hub.add_folder(ALONE, alone)
    loaded = AutoModel.from_pretrained(str(alone) if is_local else ALONE)
    assert differing(loaded, model) == set()


def test_adapter_of_peft_is_loaded_on_the_base_that_it_names(
    bucket_config: SalmonnConfig, hub: HubServer, tmp_path: Path
) -> None:
    model = tiny_model(deepcopy(bucket_config))
    model.save_pretrained(tmp_path / "base")
    hub.add_folder(BASE, tmp_path / "base")
    targets = r".*language_model.*\.(q_proj|k_proj)"
    wrapped = get_peft_model(
        AutoModel.from_pretrained(BASE),
        LoraConfig(r=2, lora_alpha=6, target_modules=targets, init_lora_weights=False),
    )
    wrapped.save_pretrained(tmp_path / "alone")
    hub.add_folder(ALONE, tmp_path / "alone")
    loaded = AutoModel.from_pretrained(ALONE)
    expected = {name.removeprefix("base_model.model."): tensor for name, tensor in wrapped.state_dict().items()}
    found = loaded.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert (loaded.config.lora_rank, loaded.config.lora_scaling) == (2, 3)  # or what is saved would not load
    loaded.save_pretrained(tmp_path / "again")
    assert_loads_equal(tmp_path / "again", loaded)
