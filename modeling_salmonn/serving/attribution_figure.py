"""Pictures of clips, and of what answers about them rest on. They need matplotlib."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.audio_utils import hertz_to_mel

from modeling_salmonn.data.pictures import DOTS_PER_INCH, require_matplotlib, require_picture_path, save_figure
from modeling_salmonn.processing.audio_segments_salmonn import MEL_FRAMES_PER_SECOND
from modeling_salmonn.processing.feature_extraction_salmonn import SAMPLING_RATE, SalmonnFeatureExtractor
from modeling_salmonn.serving.attribution import Explanation


WIDTH, MEL_HEIGHT, CURVE_HEIGHT, ROW_HEIGHT, MARGIN = 9.0, 2.0, 1.2, 0.21, 1.1  # inches
MAX_ROWS = 40  # a longer answer would be a wall of rows
TITLE_LETTERS = 90
TICKS_KHZ = (0.5, 1, 2, 4, 8)
NOTE: dict[str, Any] = {"loc": "left", "fontsize": "small", "color": "dimgray"}
METHOD = "an attribution (gradient times input), not trained time stamps"
WEIGHT_COLOR, WEIGHT_MAP = "#d9480f", "Oranges"
# For characters that matplotlib's own font lacks; those that are installed are used.
OTHER_FONTS = ("Noto Sans CJK SC", "Noto Sans SC", "WenQuanYi Zen Hei", "Microsoft YaHei", "PingFang SC")


def weights_over_time(explanation: Explanation, weights: np.ndarray) -> np.ndarray:
    """Weights `(..., audio_tokens)` as `(..., frames)` of 10 ms: at each moment the sum over its windows."""
    frames = max(1, round(explanation.seconds * MEL_FRAMES_PER_SECOND))
    spread = np.zeros((*weights.shape[:-1], frames))
    for token, (start, end) in enumerate(np.rint(explanation.times * MEL_FRAMES_PER_SECOND).astype(int)):
        spread[..., start:end] += weights[..., token, None]
    return spread


def plot_explanation(explanation: Explanation, waveform: np.ndarray | torch.Tensor, picture: Path) -> None:
    """Write what `draw_explanation` draws.

    Args:
        explanation, waveform: see there.
        picture: PNG to write, or another format that its name says; its folder is made.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: for a file that a picture must not be written to; see `require_picture_path`.
    """
    require_matplotlib()
    require_picture_path(picture)
    with _text_style():
        save_figure(draw_explanation(explanation, waveform), picture)


def draw_explanation(explanation: Explanation, waveform: np.ndarray | torch.Tensor, width: float = WIDTH) -> Any:
    """A clip over time, and below it the weight of each moment for the answer and for each of its tokens.

    Args:
        explanation: of an answer about the clip.
        waveform (of shape `(samples,)`): the clip, mono at 16 kHz, as `SalmonnFeatureExtractor.fetch_audio` gives it.
        width: of the figure in inches.

    Returns:
        The `matplotlib.figure.Figure`.

    Raises:
        ImportError: if matplotlib is missing.
    """
    rows = len(explanation.token_texts) if len(explanation.token_texts) <= MAX_ROWS else 0
    heights = [MEL_HEIGHT, CURVE_HEIGHT] + ([rows * ROW_HEIGHT] if rows else [])
    with _text_style():
        figure, panels = _make_panels(heights, width)
        answer = " ".join(explanation.answer.split())
        if len(answer) > TITLE_LETTERS:
            answer = f"{answer[:TITLE_LETTERS]}…"
        figure.suptitle(answer, x=0.01, ha="left", weight="bold", parse_math=False)
        _draw_log_mel(panels[0], waveform)
        panels[0].set_title(f"What the answer rests on: {METHOD}", **NOTE)
        _draw_total(panels[1], explanation)
        if rows:
            _draw_tokens(panels[2], explanation)
        panels[0].set_xlim(0, explanation.seconds)
    return figure


def draw_clip(waveform: np.ndarray | torch.Tensor, width: float = WIDTH) -> Any:
    """A clip over time, as the speech encoder gets it.

    Args:
        waveform, width: see `draw_explanation`.

    Returns:
        The `matplotlib.figure.Figure`.

    Raises:
        ImportError: if matplotlib is missing.
    """
    with _text_style():
        figure, panels = _make_panels([MEL_HEIGHT], width)
        _draw_log_mel(panels[0], waveform)
    return figure


@contextmanager
def _text_style() -> Iterator[None]:
    """Letters of all that is made or written meanwhile."""
    require_matplotlib()
    from matplotlib import font_manager, rc_context

    fonts = [name for name in OTHER_FONTS if name in font_manager.get_font_names()]
    with rc_context({"font.size": 9, "font.family": ["DejaVu Sans", *fonts]}):
        yield


def _make_panels(heights: list[float], width: float) -> tuple[Any, Any]:
    """A figure of panels over one time axis, sizes in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, sum(heights) + MARGIN), dpi=DOTS_PER_INCH, layout="constrained")
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    panels[-1].set_xlabel("seconds")
    return figure, panels


def _draw_log_mel(panel: Any, waveform: np.ndarray | torch.Tensor) -> None:
    extractor = SalmonnFeatureExtractor(num_fbank_bins=0)
    features = extractor(waveform, sampling_rate=SAMPLING_RATE)
    frames = int(features["input_features_mask"].sum())
    log_mel = features["input_features"][0, :, :frames].cpu().numpy()
    highest = hertz_to_mel(SAMPLING_RATE / 2, mel_scale="slaney")
    ticks = [hertz_to_mel(1000 * khz, mel_scale="slaney") / highest for khz in TICKS_KHZ]
    extent = (0, frames / MEL_FRAMES_PER_SECOND, 0, 1)
    panel.imshow(log_mel, origin="lower", aspect="auto", cmap="magma", extent=extent)
    panel.set_yticks(ticks, [f"{khz:g}" for khz in TICKS_KHZ])
    panel.set_ylabel("kHz (log-mel)")


def _draw_total(panel: Any, explanation: Explanation) -> None:
    """The share of each moment's windows, and the stretch with half of the weight."""
    curve = 100 * weights_over_time(explanation, explanation.total)
    start, end, _ = explanation.main_span()
    panel.axvspan(start, end, color=WEIGHT_COLOR, alpha=0.12, linewidth=0)
    edges = np.linspace(0, explanation.seconds, len(curve) + 1)
    panel.stairs(curve, edges, fill=True, color=WEIGHT_COLOR)
    panel.set_ylim(0, 1.1 * curve.max())
    panel.set_ylabel("% of weight")
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_title(explanation.summary(), **NOTE)


def _draw_tokens(panel: Any, explanation: Explanation) -> None:
    """One row for each token of the answer, each in the scale of its own largest weight."""
    grid = weights_over_time(explanation, explanation.weights)
    grid /= grid.max(axis=1, keepdims=True).clip(min=np.finfo(grid.dtype).tiny)
    extent = (0, explanation.seconds, len(grid), 0)
    panel.imshow(grid, aspect="auto", cmap=WEIGHT_MAP, extent=extent, interpolation="nearest")
    labels = [repr(text.strip())[1:-1] or repr(text) for text in explanation.token_texts]
    panel.set_yticks(np.arange(len(grid)) + 0.5, labels, parse_math=False)
    panel.tick_params(axis="y", length=0)
    panel.set_title("Tokens of the answer, each in its own scale", **NOTE)
