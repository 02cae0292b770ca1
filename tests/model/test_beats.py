"""BEATs: its masks, position bias and heads, against slow and plain computations."""

import math
from pathlib import Path

import pytest
import torch
from conftest import make_clip

from modeling_salmonn import BeatsConfig, BeatsForAudioClassification, BeatsModel, SalmonnFeatureExtractor
from modeling_salmonn.modeling_beats import BeatsAttention, BeatsRelativePositionBias


def small_config(**options: object) -> BeatsConfig:
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32}
    return BeatsConfig(**{**sizes, "patch_embed_size": 16, "conv_pos_kernel": 16, "conv_pos_groups": 4, **options})


def small_model(model_class: type = BeatsModel, **options: object) -> BeatsModel:
    torch.manual_seed(0)
    return model_class(small_config(**options)).eval()


def fbanks(*seconds: float) -> tuple[torch.Tensor, torch.Tensor]:
    features = SalmonnFeatureExtractor()([make_clip(s, seed=i) for i, s in enumerate(seconds)], sampling_rate=16000)
    return features["audio_input_features"], features["audio_input_features_mask"]


def slow_bucket(distance: int, num_buckets: int, max_distance: int) -> int:
    half = num_buckets // 2
    exact = half // 2
    offset = half if distance > 0 else 0
    distance = abs(distance)
    if distance < exact:
        return offset + distance
    position = math.log(distance / exact) / math.log(max_distance / exact) * (half - exact)
    return offset + min(exact + int(position), half - 1)


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(320, 800), (32, 128)])
def test_position_buckets_equal_the_definition(num_buckets: int, max_distance: int) -> None:
    bias = BeatsRelativePositionBias(small_config(num_buckets=num_buckets, max_distance=max_distance))
    distances = torch.arange(-1495, 1496)
    expected = [slow_bucket(distance, num_buckets, max_distance) for distance in distances.tolist()]
    # Single precision may round a distance at a border into the neighbour, as it does in the reference.
    difference = (bias.buckets(distances) - torch.tensor(expected)).abs()
    assert difference.max() <= 1
    assert (difference > 0).sum() <= 4


def test_position_bias_depends_on_the_distance_alone() -> None:
    bias = BeatsRelativePositionBias(small_config())
    matrix = bias(40)
    assert matrix.shape == (3, 40, 40)
    for query, key in ((0, 0), (0, 39), (39, 0), (17, 5)):
        bucket = bias.buckets(torch.tensor(key - query))
        assert torch.equal(matrix[:, query, key], bias.embedding.weight[bucket])


def test_gate_equals_the_definition() -> None:
    attention = BeatsAttention(small_config())
    query = torch.randn(1, 3, 5, 8)
    with torch.no_grad():
        attention.gate_scale.normal_()
        gate = attention.gate(query)
        projected = attention.gate_proj(query[0, 1, 2])
        first, second = projected[:4].sum().sigmoid(), projected[4:].sum().sigmoid()
        expected = first * (second * attention.gate_scale[0, 1, 0, 0] - 1) + 2
    assert gate[0, 1, 2, 0].item() == pytest.approx(expected.item(), abs=1e-6)


@torch.no_grad()
def test_padded_clip_equals_the_clip_alone() -> None:
    model = small_model()
    features, mask = fbanks(1.3, 4.0, 30.0)
    states = model(features, mask).last_hidden_state
    for row in range(3):
        frames = int(mask[row].sum())
        alone = model(features[row : row + 1, :frames]).last_hidden_state
        assert alone.shape[1] == frames // 16 * 8 == int(model.patch_mask(mask)[row].sum())
        assert (states[row, : alone.shape[1]] - alone[0]).abs().max() <= 1e-5


@torch.no_grad()
def test_padding_values_do_not_matter() -> None:
    model = small_model()
    features, mask = fbanks(1.3, 4.0)
    expected = model(features, mask).last_hidden_state[model.patch_mask(mask)]
    noisy = torch.where(mask.bool().unsqueeze(-1), features, torch.randn_like(features))
    # The last patch that is not whole is dropped too, so noise behind the audio cannot leak through it.
    assert torch.allclose(model(noisy, mask).last_hidden_state[model.patch_mask(mask)], expected, atol=1e-6)


@pytest.mark.parametrize("trained", ["", "relative_position_bias", "layers.1.self_attn.v_proj", "layers.0"])
def test_gradients_do_not_depend_on_shared_masks(trained: str) -> None:
    """Of all weights, or of some: layers that are not trained write their masks into one buffer."""
    model = small_model(attention_dropout=0.0, hidden_dropout=0.0)
    features, mask = fbanks(1.3, 4.0)
    model(features, mask).last_hidden_state.square().mean().backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    model(features, mask).last_hidden_state.square().mean().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert found
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name])


@torch.no_grad()
def test_mixed_precision_stays_close() -> None:
    model = small_model()
    features, mask = fbanks(1.3, 4.0)
    keep = model.patch_mask(mask)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(features, mask).last_hidden_state[keep]
    assert (mixed - model(features, mask).last_hidden_state[keep]).abs().mean() <= 0.02


@torch.no_grad()
@pytest.mark.parametrize("options", [{"gated_relative_position": False}, {"deep_norm": False}, {"conv_bias": True}])
def test_variants_differ_and_run(options: dict[str, bool]) -> None:
    features, mask = fbanks(1.0)
    model, variant = small_model(), small_model(**options)
    variant.load_state_dict(model.state_dict(), strict=False)
    states = variant(features, mask).last_hidden_state
    assert torch.isfinite(states[variant.patch_mask(mask)]).all()
    if "conv_bias" not in options:
        assert not torch.allclose(states, model(features, mask).last_hidden_state, atol=1e-4)


@torch.no_grad()
def test_tagging_head_averages_over_audio() -> None:
    tagger = small_model(BeatsForAudioClassification, num_labels=5)
    features, mask = fbanks(1.3, 4.0)
    output = tagger(features, mask, labels=torch.eye(2, 5))
    assert output.logits.shape == (2, 5)
    assert output.loss.item() > 0
    frames = int(mask[0].sum())
    assert torch.allclose(output.logits[0], tagger(features[:1, :frames]).logits[0], atol=1e-5)


def test_tagging_head_learns() -> None:
    """A short step against the gradient lowers the loss by as much as the gradient says, whatever the weights."""
    tagger = small_model(BeatsForAudioClassification, num_labels=2)
    features, mask = fbanks(1.0, 1.0)
    before = tagger(features, mask, labels=torch.eye(2)).loss
    before.backward()
    assert all(parameter.grad.any() for parameter in tagger.parameters())
    wanted = 1e-3 * before.item()
    rate = wanted / sum(parameter.grad.square().sum() for parameter in tagger.parameters())
    with torch.no_grad():
        for parameter in tagger.parameters():
            parameter -= rate * parameter.grad
        after = tagger(features, mask, labels=torch.eye(2)).loss
    assert before.item() - after.item() == pytest.approx(wanted, rel=0.3)


def test_beats_saves_and_loads_alone(tmp_path: Path) -> None:
    model = small_model()
    model.save_pretrained(tmp_path)
    features, mask = fbanks(1.0)
    with torch.no_grad():
        expected = model(features, mask).last_hidden_state
        assert torch.equal(BeatsModel.from_pretrained(tmp_path)(features, mask).last_hidden_state, expected)


def test_initial_weight_norm_keeps_the_drawn_weights() -> None:
    conv = small_model().position_conv.conv
    assert torch.allclose(conv.weight, conv.parametrizations.weight.original1, atol=1e-6)
    assert conv.weight.std().item() == pytest.approx(math.sqrt(4.0 / (16 * 24)), rel=0.2)
