"""Which data work for activation tuning (paper, table 4).

The same model is tuned for the same number of steps on four kinds of answers, and evaluated on the same rows before
and after each:

```
story       stories that the model wrote about clips
qa          its long answers to questions about the same clips
asr_long    transcripts as long as the stories, of clips joined one after the other
text_story  the stories again, without the clips

OUTPUT/before                                        the evaluation of the untouched model
       KIND/answers.jsonl  KIND/model  KIND/after    what is tuned on, the tuned model, its evaluation
       activation_data.json  activation_data.png  activation_data.md
```
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modeling_salmonn.activation.clips import unused_rows
from modeling_salmonn.activation.tuning import (
    AFTER,
    BEFORE,
    MODEL_FOLDER,
    ActivationEvaluation,
    TuningSettings,
    evaluation_settings,
    tune_unless_finished,
)
from modeling_salmonn.activation.writing import WritingSettings
from modeling_salmonn.data.files import Journal
from modeling_salmonn.data.pictures import require_matplotlib
from modeling_salmonn.data.rows import Row
from modeling_salmonn.evaluation.answering import Answerer
from modeling_salmonn.evaluation.run import EvaluationSettings
from modeling_salmonn.evaluation.summary import comparison
from modeling_salmonn.studies.activation_kinds import make_kinds, mean_words
from modeling_salmonn.studies.plots import figure_style, make_panels, write_study


NAME = "activation_data"
PANELS = ("following_rate", "repeat_rate", "wer")
PANEL_WIDTH, PANEL_HEIGHT = 4.2, 3.2  # inches

HOW_TO_READ = """\
Each column behind `before` is the same model after {steps} steps on one kind of data; all answered the same rows. Data
work if the following rate rises, in other untrained tasks as well as in stories, while hardly more answers loop
(repeat rate) and speech recognition loses little (word error rate). In the paper stories about audio do that, long
answers to questions less, and neither long transcripts nor stories without audio: an answer has to be long, free, and
about what is heard. A rate that rises for `story` alone may be a text learnt by heart, and a word error rate that
rises steeply is speech recognition forgotten: read the answers in the folders `after`. Losses of different kinds do
not compare, since the model wrote some of the texts itself. Of n clips one answer makes 1/n of a rate: with few clips,
and from one seed, small differences are chance.
"""


@dataclass(frozen=True)
class Kind:
    """What tuning on a kind of data was."""

    answers: int  # how many there are
    words: float  # mean number of words in an answer
    losses: list[float]  # of each step


@dataclass(frozen=True)
class ActivationData:
    """The comparison."""

    summaries: Mapping[str, Mapping[str, Any]]  # of the untouched model, `before`, and by kind of the tuned ones
    kinds: Mapping[str, Kind]
    left_out: Mapping[str, str]  # kinds, and why

    def left_out_lines(self) -> list[str]:
        """Why kinds were left out, a sentence each."""
        return [f"{kind} is left out: {reason}" for kind, reason in self.left_out.items()]


def compare_activation_data(
    model: str,
    clips: Sequence[Row],
    rows: Sequence[Row],
    output: Path,
    prompts: Mapping[str, list[str]],
    writing: WritingSettings | None = None,
    tuning: TuningSettings | None = None,
    evaluation: EvaluationSettings | None = None,
) -> ActivationData:
    """Make the kinds of data, tune on each, evaluate; what an earlier call has finished is not done again.

    Args:
        model: folder or Hub id of the model after instruction tuning, with a LoRA adapter.
        clips: rows with a `path`; the transcripts of `asr_long` come from them too.
        rows: rows to evaluate on, except for those whose clips are tuned on; `asr_long` comes from them if no clip has
            a transcript.
        output: folder for everything.
        prompts: instructions of each task, from `load_prompts`.
        writing, tuning, evaluation: settings of the steps, as for `run_activation`; `question_share` follows from the
            kind.
    """
    require_matplotlib()
    writing, tuning = writing or WritingSettings(), tuning or TuningSettings()
    settings = evaluation_settings(evaluation, tuning)
    untouched = Answerer.from_pretrained(model, tuning.dtype, tuning.device)
    manifests, left_out = make_kinds(untouched, clips, rows, output, prompts, writing)
    unused = unused_rows(rows, list(manifests.values()))
    if not unused:
        raise ValueError(f"All {len(rows)} rows to compare on have clips that are tuned on; give others.")
    tested = ActivationEvaluation(unused, prompts, settings)
    summaries = {BEFORE: tested.run(model, output / BEFORE, untouched)}
    del untouched  # or it would stay in memory beside those that are tuned
    kinds = {}
    for kind, manifest in manifests.items():
        folder = manifest.parent
        losses = tune_unless_finished(model, manifest, folder, tuning)
        summaries[kind] = tested.run(str(folder / MODEL_FOLDER), folder / AFTER)
        answers = Journal(manifest, needed={"text": str}).rows  # stories without audio have no path
        kinds[kind] = Kind(len(answers), mean_words(answers), losses)
    found = ActivationData(summaries, kinds, left_out)
    used = {"writing": asdict(writing), "tuning": asdict(tuning), "evaluation": asdict(settings)}
    results = {"model": model, "settings": used} | asdict(found)
    report = activation_data_report(model, found, tuning.steps)
    write_study(output, NAME, results, report, draw_activation_data(summaries))
    return found


def activation_data_report(model: str, found: ActivationData, steps: int) -> str:
    """The comparison in Markdown: scores, what was tuned on and left out, how to read it."""
    lines = ["| data | answers | words in each | loss of the first step | of the last |", "|---|---|---|---|---|"]
    for name, kind in found.kinds.items():
        losses = f"{kind.losses[0]:.3f} | {kind.losses[-1]:.3f}"
        lines.append(f"| {name} | {kind.answers} | {kind.words:.0f} | {losses} |")
    parts = [f"`{model}`, tuned on different data\n", comparison(found.summaries), "\n".join(lines) + "\n"]
    if found.left_out:
        parts.append("- " + "\n- ".join(found.left_out_lines()) + "\n")
    return "\n".join([*parts, HOW_TO_READ.format(steps=steps)])


@figure_style()
def draw_activation_data(summaries: Mapping[str, Mapping[str, Any]]) -> Any:
    """Following rate, repeat rate and word error rate as bars with 95 % intervals, in groups by task."""
    width = 0.8 / len(summaries)  # of a bar; the rest of each group is a gap
    figure, panels = make_panels(len(PANELS), len(PANELS), PANEL_WIDTH, PANEL_HEIGHT)
    for name, panel in zip(PANELS, panels, strict=True):
        tasks = [task for task, entry in summaries[BEFORE].items() if name in entry["metrics"]]
        for column, (kind, summary) in enumerate(summaries.items()):
            bounds = []
            for task in tasks:
                score = summary[task]["metrics"][name]
                bounds.append([score["low"], score["value"], score["high"]])
            low, heights, high = np.array(bounds).reshape(-1, 3).T
            places = np.arange(len(tasks)) + (column - (len(summaries) - 1) / 2) * width
            # An interval of draws need not hold the value itself.
            errors = np.maximum(0, [heights - low, high - heights])
            color = "0.6" if kind == BEFORE else f"C{column - 1}"
            panel.bar(places, heights, width, yerr=errors, ecolor="0.3", label=kind, color=color)
        panel.set(title=name.replace("_", " "), ylim=(0, None))
        panel.set_xticks(range(len(tasks)), tasks, rotation=20 if len(tasks) > 1 else 0)
        panel.grid(visible=False, axis="x")
        panel.set_axisbelow(True)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
    return figure
