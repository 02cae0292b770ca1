"""The record of a model that answers: the same for the same answers, another one for others."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.hub.weights_hash import answering_record, weights_hash


def test_record_is_the_same_after_loading(bucket_model: SalmonnForConditionalGeneration, saved_folder: Path) -> None:
    loaded = SalmonnForConditionalGeneration.from_pretrained(saved_folder)
    assert answering_record(loaded) == answering_record(bucket_model)


def without_adapter(model: Any) -> None:
    model._forget_adapters()


def merged(model: Any) -> None:
    model.merge_lora()


def merged_at_another_scale(model: Any) -> None:
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.scaling["default"] *= 1.1
    model.merge_lora()


def with_another_encoder(model: Any) -> None:
    with torch.no_grad():
        model.model.speech_encoder.layers[0].fc1.weight.mul_(1.01)


def with_another_connector(model: Any) -> None:
    with torch.no_grad():
        model.model.projector.bias[-1] += 0.1


def in_half_precision(model: Any) -> None:
    model.bfloat16()


CHANGES = [
    without_adapter,
    merged,
    merged_at_another_scale,
    with_another_encoder,
    with_another_connector,
    in_half_precision,
]


def test_hash_tells_models_apart(bucket_model: SalmonnForConditionalGeneration) -> None:
    hashes = [weights_hash(bucket_model)]
    for change in CHANGES:
        other = deepcopy(bucket_model)
        change(other)
        hashes.append(weights_hash(other))
    assert len(set(hashes)) == len(CHANGES) + 1
