"""Which seconds of a clip an answer rests on: an attribution to its audio tokens, each of which has a window in time.

The model answers greedily. Then each token of the answer is asked how its log-probability changes when an audio token
is scaled a little: the gradient times the embedding (gradient times input, arXiv 1605.01713), without its sign.

It tells what the language model reads, not when something happens: the encoders mix neighbouring moments into each
window before it gets there. These are no time stamps, which would have to be trained.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, PreTrainedTokenizerBase

from modeling_salmonn.audio_inputs_salmonn import AUDIO_INPUTS
from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.pipeline_salmonn import DEFAULT_NEW_TOKENS
from modeling_salmonn.processing.audio_segments_salmonn import MEL_FRAMES_PER_SECOND
from modeling_salmonn.processing.processing_salmonn import SalmonnProcessor


MENTIONED_SHARE = 0.01  # less weight outside the clip is not worth a word
UNFINISHED = "\ufffd"  # what the bytes of half a character are decoded to


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
    return explain_messages(model, processor, [{"role": "user", "content": content}], max_new_tokens, lora_scale)


def explain_messages(
    model: SalmonnForConditionalGeneration,
    processor: SalmonnProcessor,
    messages: Sequence[Any],
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
    lora_scale: float | None = None,
) -> Explanation:
    """As `explain`, for the answer that comes next in a conversation about one clip.

    Args:
        messages: the conversation, as the chat template takes it; it ends with the user's turn.
        model, processor, max_new_tokens, lora_scale: as for `explain`.

    Raises:
        ValueError: also if the conversation has no clip or several, whose times would be mixed up.
    """
    inputs = processor.apply_chat_template(
        messages,
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        return_tensors="pt",
    ).to(model.device)
    clips = len(inputs["input_features_mask"]) if "input_features_mask" in inputs else 0
    if clips != 1:
        raise ValueError(f"An answer is explained by the seconds of one clip, but there are {clips}; give one.")
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
