"""Which seconds of a clip an answer rests on: an attribution to its audio tokens, each of which has a window in time.

The model answers greedily. Then each token of the answer is asked how its log-probability changes when an audio token
is scaled a little: the gradient times the embedding (gradient times input, arXiv 1605.01713), without its sign.

It tells what the language model reads, not when something happens: the encoders mix neighbouring moments into each
window before it gets there. These are no time stamps, which would have to be trained.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, PreTrainedTokenizerBase
from transformers.audio_utils import hertz_to_mel

from modeling_salmonn.audio_inputs_salmonn import AUDIO_INPUTS
from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.pipeline_salmonn import DEFAULT_NEW_TOKENS
from modeling_salmonn.processing.audio_segments_salmonn import MEL_FRAMES_PER_SECOND
from modeling_salmonn.processing.feature_extraction_salmonn import SAMPLING_RATE, SalmonnFeatureExtractor
from modeling_salmonn.processing.processing_salmonn import SalmonnProcessor
from modeling_salmonn.studies.plots import require_matplotlib, require_picture_path, save_figure


MENTIONED_SHARE = 0.01  # less weight outside the clip is not worth a word
UNFINISHED = "\ufffd"  # what the bytes of half a character are decoded to

WIDTH, MEL_HEIGHT, CURVE_HEIGHT, ROW_HEIGHT, MARGIN = 9.0, 2.0, 1.2, 0.21, 1.1  # inches
MAX_ROWS = 40  # a longer answer would be a wall of rows
TITLE_LETTERS = 90
TICKS_KHZ = (0.5, 1, 2, 4, 8)
NOTE: dict[str, Any] = {"loc": "left", "fontsize": "small", "color": "dimgray"}
WEIGHT_COLOR, WEIGHT_MAP = "#d9480f", "Oranges"
# For characters that matplotlib's own font lacks; those that are installed are used.
OTHER_FONTS = ("Noto Sans CJK SC", "Noto Sans SC", "WenQuanYi Zen Hei", "Microsoft YaHei", "PingFang SC")


@dataclass(frozen=True, eq=False)
class Explanation:
    """An answer, and how much each of its tokens rests on each audio token.

    Args:
        answer: what the model said.
        token_texts: the answer's tokens as text, without special tokens.
        times (`np.ndarray` of shape `(audio_tokens, 2)`): start and end of each audio token's window in seconds.
        weights (`np.ndarray` of shape `(answer_tokens, audio_tokens)`): how the log-probability of a token of the
            answer changes with the scale of an audio token, without sign.
        total (`np.ndarray` of shape `(audio_tokens,)`): the same for the whole answer, as shares of one.
        seconds: length of the clip; windows behind it lie in padding.
    """

    answer: str
    token_texts: tuple[str, ...]
    times: np.ndarray
    weights: np.ndarray
    total: np.ndarray
    seconds: float

    @property
    def share_outside(self) -> float:
        """Share of the weight on windows that begin behind the clip's end."""
        return float(self.total[~self._inside()].sum())

    def main_span(self) -> tuple[float, float, float]:
        """The shortest stretch of the clip with half of the weight that lies in the clip.

        Returns:
            Its start and end in seconds, and the share of all weight on the windows within it.
        """
        inside = self._inside()
        starts, ends = self.times[inside, 0], self.times[inside, 1].clip(max=self.seconds)
        sums = np.concatenate([[0.0], np.cumsum(self.total[inside])])
        behind = np.searchsorted(sums, sums[:-1] + sums[-1] / 2)  # first token behind the stretch from each start
        firsts = np.flatnonzero(behind < len(sums))
        first = firsts[np.argmin(ends[behind[firsts] - 1] - starts[firsts])]
        return float(starts[first]), float(ends[behind[first] - 1]), float(sums[behind[first]] - sums[first])

    def summary(self) -> str:
        """One line that says where most of the weight lies."""
        start, end, share = self.main_span()
        line = (
            f"answer rests mostly on {start:.1f} to {end:.1f} s: {100 * share:.0f} % of the weight in "
            f"{100 * (end - start) / self.seconds:.0f} % of the clip (attribution, not time stamps)"
        )
        if self.share_outside <= MENTIONED_SHARE:
            return f"The {line}"
        outside = f"{100 * self.share_outside:.0f} % of the weight lies in the padding behind it"
        return f"Within the clip, the {line}; {outside}"

    def _inside(self) -> np.ndarray:
        """Which windows begin within the clip, `(audio_tokens,)`; half a frame covers rounding."""
        return self.times[:, 0] < self.seconds - 0.5 / MEL_FRAMES_PER_SECOND


def explain(
    model: SalmonnForConditionalGeneration,
    processor: SalmonnProcessor,
    audio: Any,
    instruction: str,
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
    lora_scale: float | None = None,
) -> Explanation:
    """Answer an instruction about one clip greedily, and tell which seconds the answer rests on.

    Args:
        model: is left as it was.
        processor: the model's.
        audio: one clip, as the processor takes it.
        instruction: as the pipeline takes it.
        max_new_tokens: longest answer.
        lora_scale: LoRA scaling instead of the trained one.

    Raises:
        ValueError: if the answer is empty, or does not depend on the audio at all.
    """
    content = [{"type": "audio", "audio": audio}, {"type": "text", "text": instruction}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        return_tensors="pt",
    ).to(model.device)
    with evaluation_mode(model), model.lora_scale(lora_scale) if lora_scale is not None else nullcontext():
        audio_tokens, spoken = answer_greedily(model, inputs, max_new_tokens)
        kept = ~torch.isin(spoken, torch.tensor(processor.tokenizer.all_special_ids, device=spoken.device))
        if not kept.any():
            raise ValueError("The answer is empty, so there is nothing to explain; ask something else.")
        weights = answer_weights(model, inputs, audio_tokens, spoken)[kept].cpu().numpy()
    if not weights.any():
        raise ValueError("The answer does not depend on the audio at all; is the model trained?")
    frames = int(inputs["input_features_mask"].sum())
    return Explanation(
        answer=processor.tokenizer.decode(spoken, skip_special_tokens=True).strip(),
        token_texts=split_text(processor.tokenizer, spoken[kept].tolist()),
        times=np.array(processor.feature_extractor.audio_layout.token_times(frames)),
        weights=weights,
        total=weights.sum(0) / weights.sum(),
        seconds=frames / MEL_FRAMES_PER_SECOND,
    )


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Run the body without dropout, then give each part of the model the mode that it had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@torch.no_grad()
def answer_greedily(
    model: SalmonnForConditionalGeneration, inputs: BatchFeature, max_new_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Audio tokens `(audio_tokens, text_hidden)` of a clip, and the ids `(answer_tokens,)` of the answer to it.

    The ids include the end token if the answer came to an end.
    """
    features = {name: inputs[name] for name in AUDIO_INPUTS if name in inputs}
    audio_tokens = model.get_audio_features(**features).pooler_output
    output = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        audio_embeds=audio_tokens[None],
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
    )
    return audio_tokens, output[0, inputs["input_ids"].shape[1] :]


def answer_weights(
    model: SalmonnForConditionalGeneration, inputs: BatchFeature, audio_tokens: torch.Tensor, answer: torch.Tensor
) -> torch.Tensor:
    """How much the log-probability of each token of an answer rests on each audio token.

    One pass forward with the whole answer, one backward for each of its tokens; no gradient reaches the weights.

    Args:
        model: in eval mode.
        inputs: of the processor, one prompt.
        audio_tokens (`torch.Tensor` of shape `(audio_tokens, text_hidden)`): of its clip.
        answer (`torch.Tensor` of shape `(answer_tokens,)`): ids.

    Returns:
        `torch.Tensor` of shape `(answer_tokens, audio_tokens)`: gradient times embedding, without sign.
    """
    with torch.enable_grad():
        tokens = audio_tokens.detach().clone().requires_grad_()
        logits = model(
            input_ids=torch.cat([inputs["input_ids"], answer[None]], dim=1),
            attention_mask=torch.nn.functional.pad(inputs["attention_mask"], (0, len(answer)), value=1),
            audio_embeds=tokens[None],
            use_cache=False,
            logits_to_keep=len(answer) + 1,
        ).logits[0, :-1]  # the last one predicts what follows the answer
        log_probabilities = logits.float().log_softmax(-1).gather(-1, answer[:, None])
        gradients = [torch.autograd.grad(value, tokens, retain_graph=True)[0] for value in log_probabilities]
    return (torch.stack(gradients).float() * tokens.detach().float()).sum(-1).abs()


def split_text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> tuple[str, ...]:
    """The text that each token adds; a character of several tokens belongs to the one that finishes it."""
    texts, shown = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end])
        finished = end == len(ids) or not text.endswith(UNFINISHED)
        texts.append(text[len(shown) :] if finished else "")
        shown = text if finished else shown
    return tuple(texts)


def weights_over_time(explanation: Explanation, weights: np.ndarray) -> np.ndarray:
    """Weights `(..., audio_tokens)` as `(..., frames)` of 10 ms: at each moment the sum over its windows."""
    frames = max(1, round(explanation.seconds * MEL_FRAMES_PER_SECOND))
    spread = np.zeros((*weights.shape[:-1], frames))
    for token, (start, end) in enumerate(np.rint(explanation.times * MEL_FRAMES_PER_SECOND).astype(int)):
        spread[..., start:end] += weights[..., token, None]
    return spread


def plot_explanation(explanation: Explanation, waveform: np.ndarray | torch.Tensor, picture: Path) -> None:
    """Draw a clip over time, and below it the weight of each moment for the answer and for each of its tokens.

    Args:
        explanation: of an answer about the clip.
        waveform (of shape `(samples,)`): the clip, mono at 16 kHz, as `SalmonnFeatureExtractor.fetch_audio` gives it.
        picture: PNG to write, or another format that its name says; its folder is made.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: for a file that a picture must not be written to; see `require_picture_path`.
    """
    require_matplotlib()
    require_picture_path(picture)
    from matplotlib import font_manager, rc_context
    from matplotlib.figure import Figure

    rows = len(explanation.token_texts) if len(explanation.token_texts) <= MAX_ROWS else 0
    heights = [MEL_HEIGHT, CURVE_HEIGHT] + ([rows * ROW_HEIGHT] if rows else [])
    fonts = [name for name in OTHER_FONTS if name in font_manager.get_font_names()]
    with rc_context({"font.size": 9, "font.family": ["DejaVu Sans", *fonts]}):
        figure = Figure(figsize=(WIDTH, sum(heights) + MARGIN), layout="constrained")
        panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
        answer = " ".join(explanation.answer.split())
        if len(answer) > TITLE_LETTERS:
            answer = f"{answer[:TITLE_LETTERS]}…"
        figure.suptitle(answer, x=0.01, ha="left", weight="bold", parse_math=False)
        _draw_log_mel(panels[0], explanation, waveform)
        _draw_total(panels[1], explanation)
        if rows:
            _draw_tokens(panels[2], explanation)
        panels[0].set_xlim(0, explanation.seconds)
        panels[-1].set_xlabel("seconds")
        save_figure(figure, picture)


def _draw_log_mel(panel: Any, explanation: Explanation, waveform: np.ndarray | torch.Tensor) -> None:
    extractor = SalmonnFeatureExtractor(num_fbank_bins=0)
    features = extractor(waveform, sampling_rate=SAMPLING_RATE)
    frames = int(features["input_features_mask"].sum())
    log_mel = features["input_features"][0, :, :frames].cpu().numpy()
    highest = hertz_to_mel(SAMPLING_RATE / 2, mel_scale="slaney")
    ticks = [hertz_to_mel(1000 * khz, mel_scale="slaney") / highest for khz in TICKS_KHZ]
    panel.imshow(log_mel, origin="lower", aspect="auto", cmap="magma", extent=(0, explanation.seconds, 0, 1))
    panel.set_yticks(ticks, [f"{khz:g}" for khz in TICKS_KHZ])
    panel.set_ylabel("kHz (log-mel)")
    panel.set_title("What the answer rests on: an attribution (gradient times input), not trained time stamps", **NOTE)


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
