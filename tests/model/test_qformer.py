"""The window-level Q-Former: windows are independent, and shapes follow the configuration."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_config, tiny_model

from modeling_salmonn import SalmonnQFormerConfig, SalmonnQFormerModel
from modeling_salmonn.audio_segments_salmonn import Segment, SegmentGroup


def small_qformer(**options: int) -> SalmonnQFormerModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "encoder_hidden_size": 10}
    return SalmonnQFormerModel(SalmonnQFormerConfig(**(sizes | options))).eval()


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"num_query_tokens": 4}, {"num_hidden_layers": 3}])
def test_windows_are_independent(options: dict[str, int]) -> None:
    qformer = small_qformer(**options)
    windows = torch.randn(7, 17, 10)
    together = qformer(windows).last_hidden_state
    assert together.shape == (7, options.get("num_query_tokens", 1), 16)
    for index in range(7):
        alone = qformer(windows[index : index + 1]).last_hidden_state[0]
        assert torch.allclose(together[index], alone, atol=1e-6)


@torch.no_grad()
def test_queries_see_every_frame_of_their_window() -> None:
    qformer = small_qformer()
    windows = torch.randn(1, 17, 10)
    expected = qformer(windows).last_hidden_state
    for frame in (0, 8, 16):
        changed = windows.clone()
        changed[0, frame] += 1.0
        assert not torch.allclose(qformer(changed).last_hidden_state, expected, atol=1e-6)


def test_windows_are_floored_to_the_segment() -> None:
    model = tiny_model(tiny_config(window_seconds=0.5, stride_seconds=0.3)).model
    frames = torch.arange(1500.0).reshape(1, 1500, 1)
    windows = model._select_windows(frames, SegmentGroup(3000, (Segment(0, 3000, 3000),)))
    assert windows.shape == (99, 25, 1)  # (1500 - 25) // 15 + 1
    assert windows[0, :, 0].tolist() == list(range(25))
    assert windows[98, :, 0].tolist() == list(range(1470, 1495))


def test_qformer_saves_and_loads_alone(tmp_path: Path) -> None:
    qformer = small_qformer(num_query_tokens=2)
    qformer.save_pretrained(tmp_path)
    windows = torch.randn(3, 5, 10)
    with torch.no_grad():
        expected = qformer(windows).last_hidden_state
        assert torch.equal(SalmonnQFormerModel.from_pretrained(tmp_path)(windows).last_hidden_state, expected)


def test_qformer_without_encoder_width_raises() -> None:
    with pytest.raises(ValueError, match="encoder_hidden_size is not set; give the width of a fused frame"):
        SalmonnQFormerModel(SalmonnQFormerConfig())


@torch.no_grad()
def test_qformer_records_both_attentions_apart() -> None:
    qformer = small_qformer(num_query_tokens=3, num_hidden_layers=2)
    qformer.set_attn_implementation("eager")
    windows = torch.randn(5, 17, 10)
    output = qformer(windows, output_attentions=True, output_hidden_states=True)
    assert [tuple(weights.shape) for weights in output.attentions] == [(5, 2, 3, 3)] * 2
    assert [tuple(weights.shape) for weights in output.cross_attentions] == [(5, 2, 3, 17)] * 2
    for weights in (*output.attentions, *output.cross_attentions):
        assert torch.allclose(weights.sum(-1), torch.ones(5, 2, 3))
    assert len(output.hidden_states) == 3
    assert qformer(windows).cross_attentions is None
