"""Watches for task over-fitting (paper, section 3.3).

By Bayes, `P(answer | audio, instruction) ~ P(answer | audio) * P(instruction | answer, audio)`. Training on
transcripts and captions biases the first factor, an implicit language model, towards short answers, until instructions
that ask for something else no longer count. On a few fixed clips this module follows the perplexity of short and of
long answers under no instruction, under the instruction of the short ones, and under that of the long ones.

Texts of different kinds are not equally hard to foresee: a story may cost more than a transcript in any model. What
tells is that the difference grows, or that it is large while a transcript is as likely where a story is asked for as
where it is asked for itself: then the second factor, `P(instruction | transcript, audio)`, is the same for both.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Collection, Mapping
from statistics import fmean
from typing import Any

import torch
from torch import nn

from modeling_salmonn.data.prompts import load_prompts
from modeling_salmonn.data.rows import load_rows
from modeling_salmonn.data.tasks import canonical_name
from modeling_salmonn.data.text_files import kind_of, shown
from modeling_salmonn.processing.processing_salmonn import SalmonnProcessor
from modeling_salmonn.training.callbacks import EvaluationCallback
from modeling_salmonn.training.trainer import keep_label_positions


logger = logging.getLogger(__name__)

# Kinds of answers that a probe may have, and the task whose first instruction asks for them.
SHORT_KINDS = {"transcript": "asr", "caption": "audio_caption"}
LONG_KINDS = {"story": "story"}
NO_INSTRUCTION = "nothing"
MARGIN = "eval_story_margin"
# In nats per token: factors of 1.6 and 1.2 in perplexity.
WORRYING_MARGIN = 0.5
SLIGHT_PENALTY = 0.2


class OverfittingCallback(EvaluationCallback):
    """Logs perplexities at the start and at each evaluation, and warns when stories get out of reach.

    The probes are a file, as of `read_probes`, of which a few are enough; prompts win over the bundled ones.
    """

    def __init__(self, trainer: Any, probes: str, processor: SalmonnProcessor, prompts: Mapping[str, list[str]]):
        super().__init__(trainer)
        self.processor = processor
        self.probes = read_probes(probes)
        known = load_prompts() | dict(prompts)
        self.instructions = {NO_INSTRUCTION: ""}
        for kind, task in (SHORT_KINDS | LONG_KINDS).items():
            self.instructions[kind] = known[task][0]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The start, against which everything is compared; a resumed run has it in its log."""
        if self._start(state) is None:
            self.take_part(state)

    def report(self, state: Any) -> None:
        """Log the perplexities, and warn of over-fitting."""
        losses = self.measure()
        margin, penalty = story_margin(losses), fallback_penalty(losses)
        scores = {MARGIN: margin}
        for (answer, instruction), loss in losses.items():
            scores[f"eval_perplexity_{answer}_under_{instruction}"] = math.exp(loss)
        start = self._start(state)
        growth = 0.0 if start is None else margin - start
        self.trainer.log(scores)
        if has_collapsed(margin, growth, penalty):
            logger.warning(
                "Task over-fitting: under the story instruction, stories cost %.2f nats per token more than short "
                "answers (%.2f at the start), and these %.2f more than under their own. The model answers untrained "
                "instructions with transcripts or captions; stop earlier, or continue with activation tuning "
                "(stage 3).",
                margin,
                margin - growth,
                penalty,
            )

    @staticmethod
    def _start(state: Any) -> float | None:
        """The first margin in the log; a resumed run has it from before."""
        margins = [entry[MARGIN] for entry in state.log_history if MARGIN in entry]
        return margins[0] if margins else None

    def measure(self) -> dict[tuple[str, str], float]:
        """Mean loss per token of each kind of answer under each instruction, over the probes."""
        kinds = SHORT_KINDS | LONG_KINDS
        device = self.trainer.args.device
        found = defaultdict(list)  # probes may lack kinds of answers
        with self.model_in_eval_mode() as model:
            for probe in self.probes:
                losses = probe_losses(model, self.processor, probe, kinds, self.instructions, device)
                for pair, loss in losses.items():
                    found[pair].append(loss)
        return {pair: fmean(losses) for pair, losses in found.items()}


@torch.no_grad()
def probe_losses(
    model: Any,
    processor: SalmonnProcessor,
    probe: Mapping[str, Any],
    kinds: Collection[str],
    instructions: Mapping[str, str],
    device: torch.device,
) -> dict[tuple[str, str], float]:
    """Mean loss in nats per token of each answer of a probe under each instruction.

    The clip is read and encoded once: its audio tokens go from the first pair to a batch of all others.

    Args:
        model: in eval mode, unwrapped.
        processor: the model's.
        probe: with `path`, and answers by kind; `kinds` that it lacks are left out.
        instructions: by name.
        device: of the model.
    """
    pairs = [(kind, name) for kind in kinds if probe.get(kind) for name in instructions]
    texts = [instructions[name] for _, name in pairs]
    answers = [probe[kind] for kind, _ in pairs]
    first = processor(text=texts[:1], audio=[[probe["path"]]], text_target=answers[:1]).to(device)
    found, tokens = _answer_losses(model, first)
    if len(pairs) > 1:
        frames = [[int(first["input_features_mask"].sum())]] * (len(pairs) - 1)  # mel frames of the clip
        others = processor(text=texts[1:], audio_frames=frames, text_target=answers[1:]).to(device)
        found += _answer_losses(model, others, tokens.expand(len(frames), -1, -1))[0]
    return dict(zip(pairs, found, strict=True))


def _answer_losses(
    model: Any, inputs: Mapping[str, Any], audio_embeds: torch.Tensor | None = None
) -> tuple[list[float], torch.Tensor]:
    """Mean loss of each answer of a batch, and the audio tokens `(audio_tokens, hidden)` that were heard."""
    kept = keep_label_positions(dict(inputs))
    targets = kept.pop("shift_labels")
    kept.pop("labels")
    # (target tokens of all answers, vocabulary)
    output = model(**kept, audio_embeds=audio_embeds)
    losses = nn.functional.cross_entropy(output.logits.float(), targets, reduction="none")
    of_each = losses.split(kept["logits_to_keep"].sum(1).tolist())
    return [float(own.mean()) for own in of_each], output.audio_hidden_states


def story_margin(losses: Mapping[tuple[str, str], float]) -> float:
    """By how many nats per token a story is less likely than a short answer where a story is asked for."""
    short = [losses[kind, "story"] for kind in SHORT_KINDS if (kind, "story") in losses]
    return losses["story", "story"] - fmean(short)


def fallback_penalty(losses: Mapping[tuple[str, str], float]) -> float:
    """By how many nats per token a short answer is less likely where a story is asked for than where it is itself."""
    short = [losses[kind, "story"] - losses[kind, kind] for kind in SHORT_KINDS if (kind, kind) in losses]
    return fmean(short)


def has_collapsed(margin: float, growth: float, penalty: float) -> bool:
    """Whether stories got out of reach during the run (the margin's growth), or were so from its start."""
    return (margin > 0 and growth > WORRYING_MARGIN) or (margin > WORRYING_MARGIN and penalty < SLIGHT_PENALTY)


def read_probes(path: str, others: Collection[str] = tuple(SHORT_KINDS)) -> list[dict[str, Any]]:
    """Probes with paths that can be opened.

    Each JSON line has `path`, `story` and one of the `others` at least. So have those of `salmonn activate write` if
    it was stories alone, where `text` is the story.
    """
    rows = load_rows(path, needs=("path",))
    probes = []
    for index, row in enumerate(rows):
        probe = dict(row)
        if canonical_name(row.get("task", "")) == LONG_KINDS["story"]:
            probe.setdefault("story", row.get("text"))
        if not (probe.get("story") and any(probe.get(kind) for kind in others)):
            found = sorted(name for name, value in probe.items() if value)
            raise ValueError(
                f"The probe in {rows.place(index)} has {shown(found)}; it needs 'path', 'story', and one "
                f"of {sorted(others)}."
            )
        for name in ("path", "story", "question", *others):
            if not isinstance(probe.get(name), str | None):
                raise ValueError(
                    f"The probe in {rows.place(index)} has {kind_of(probe[name])} as {name}, but it needs text."
                )
        probes.append(probe)
    return probes
