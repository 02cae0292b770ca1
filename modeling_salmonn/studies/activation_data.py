"""Which data work for activation tuning (paper, table 4).

The same model is tuned for the same number of steps on four kinds of answers, and each time compared with the
untouched one on the same rows:

```
story       stories that the model wrote about clips
qa          its long answers to questions about the same clips
asr_long    transcripts as long as the stories, of clips joined one after the other
text_story  the stories again, without the clips

OUTPUT/before.jsonl                                        answers of the untouched model
       KIND/answers.jsonl  KIND/model  KIND/after.jsonl    what is tuned on, the tuned model, its answers
       activation_data.json  activation_data.png  activation_data.md
```
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modeling_salmonn.activation.tuning import MODEL_FOLDER, TuningSettings, finished_losses, tune_on_answers
from modeling_salmonn.activation.tuning import RECORD_FILE as TUNING_FILE
from modeling_salmonn.activation.writing import STORY_TASK, WritingSettings
from modeling_salmonn.data.files import Journal, read_record, write_bytes, write_json, write_rows
from modeling_salmonn.data.rows import Row
from modeling_salmonn.data.text_files import read_json_object
from modeling_salmonn.evaluation.answering import Answerer, weights_hash
from modeling_salmonn.evaluation.comparison import (
    FIGURES,
    ComparisonSettings,
    Figures,
    answer_rows,
    choose_rows,
    figures_by_task,
)
from modeling_salmonn.evaluation.instruction_following import FALLBACK_TASKS
from modeling_salmonn.studies.activation_kinds import DataMaker, clips_of, mean_words
from modeling_salmonn.studies.plots import figure_style, make_panels, require_matplotlib, save_figure


BEFORE = "before"
ANSWERED_FIELDS = {"task": str, "answer": str, "text": str}
NAME = "activation_data"
PANELS = ("following_rate", "repeat_rate", "word_error_rate")
PANEL_WIDTH, PANEL_HEIGHT = 4.2, 3.2  # inches

HOW_TO_READ = """\
Each column but the first is the same model after {steps} steps on one kind of data; all answered the same rows. Data
work if the following rate rises, in other untrained tasks as well as in stories, while hardly more answers loop
(repeat rate) and speech recognition loses little (word error rate). In the paper stories about audio do that, long
answers to questions less, and neither long transcripts nor stories without audio: an answer has to be long, free, and
about what is heard. A rate that rises for `story` alone may be a text learnt by heart, and a word error rate that
rises steeply is speech recognition forgotten: read the answers in `after.jsonl`. Losses of different kinds do not
compare, since the model wrote some of the texts itself. Of n clips one answer makes 1/n of a rate: with few clips,
and from one seed, small differences are chance.
"""


@dataclass(frozen=True)
class KindResult:
    """What tuning on a kind of data gave.

    Args:
        examples: answers in it.
        words: mean number of words in an answer.
        losses: of each step.
        figures: of the tuned model, by task.
    """

    examples: int
    words: float
    losses: list[float]
    figures: Mapping[str, Figures]


@dataclass(frozen=True)
class ActivationData:
    """The comparison.

    Args:
        before: figures of the untouched model, by task.
        kinds: what each kind gave.
        left_out: why kinds were left out.
    """

    before: Mapping[str, Figures]
    kinds: Mapping[str, KindResult]
    left_out: Mapping[str, str]

    def columns(self) -> dict[str, Mapping[str, Figures]]:
        """Figures by task of the untouched model and of each tuned one."""
        return {BEFORE: self.before} | {kind: result.figures for kind, result in self.kinds.items()}

    def lines(self) -> list[list[str]]:
        """The table: its head, then one line for each task and figure."""
        columns = self.columns()
        lines = [["task", "clips", "figure", *columns]]
        for task, before in self.before.items():
            for name, form in FIGURES.items():
                if getattr(before, name) is not None:
                    values = [f"{getattr(figures[task], name):{form}}" for figures in columns.values()]
                    lines.append([task, str(before.clips), name.replace("_", " "), *values])
        return lines

    def kind_lines(self) -> list[list[str]]:
        """The table of what was tuned on."""
        lines = [["data", "answers", "words in each", "loss of the first step", "of the last"]]
        for kind, result in self.kinds.items():
            losses = [f"{loss:.3f}" for loss in (result.losses[0], result.losses[-1])]
            lines.append([kind, str(result.examples), f"{result.words:.0f}", *losses])
        return lines

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
    comparing: ComparisonSettings | None = None,
) -> ActivationData:
    """Make the kinds of data, tune on each, compare; what an earlier call has finished is not done again.

    Args:
        model: folder or Hub id of the model after instruction tuning, with a LoRA adapter.
        clips: rows with a `path`; the transcripts of `asr_long` come from them too.
        rows: rows to compare on, except for those whose clips are tuned on; `asr_long` comes from them if no clip has
            a transcript.
        output: folder for everything.
        prompts: instructions of each task, from `load_prompts`.
        writing, tuning, comparing: settings of the three steps; `question_share` follows from the kind.

    Raises:
        ValueError: if no kind can be made, nothing is left to compare on, the model has no adapter, or the folder has
            answers of other settings.
        ImportError: if matplotlib is missing.
    """
    require_matplotlib()
    _require_prompts(prompts)
    writing, tuning = writing or WritingSettings(), tuning or TuningSettings()
    questioner = Questioner(prompts, comparing or ComparisonSettings(), tuning.dtype)
    untouched = Answerer.from_pretrained(model, tuning.dtype)
    manifests, left_out = DataMaker(untouched, clips, rows, output, prompts, writing).make()
    questioner.choose(rows, manifests.values())
    before = questioner.ask(untouched, weights_hash(untouched), output / f"{BEFORE}.jsonl")
    del untouched  # or it would stay in memory beside those that are tuned
    kinds = {kind: tune_and_ask(model, file, questioner, tuning) for kind, file in manifests.items()}
    found = ActivationData(before, kinds, left_out)
    settings = {"writing": asdict(writing), "tuning": asdict(tuning), "comparing": asdict(questioner.settings)}
    write_json(output / f"{NAME}.json", {"model": model, "settings": settings} | asdict(found))
    write_bytes(output / f"{NAME}.md", activation_data_report(model, found, tuning.steps).encode())
    save_figure(draw_activation_data(found), output / f"{NAME}.png")
    return found


class Questioner:
    """Has several models answer the same rows; answers of an earlier call to them are kept.

    Args:
        prompts: instructions of each task.
        settings: which rows, and how they are answered.
        dtype: type of the models' weights.
    """

    def __init__(self, prompts: Mapping[str, list[str]], settings: ComparisonSettings, dtype: str):
        self.prompts = prompts
        self.settings = settings
        self.dtype = dtype
        self.rows: list[Row] = []

    def choose(self, rows: Sequence[Row], tuned_on: Iterable[Path]) -> None:
        """Choose rows whose clips are in none of some manifests.

        Raises:
            ValueError: if there are none, or none that can be judged.
        """
        used = {clip for manifest in tuned_on for row in Journal(manifest).rows for clip in clips_of(row)}
        unused = [row for row in rows if not used & set(clips_of(row))]
        if not unused:
            raise ValueError(f"All {len(rows)} rows to compare on have clips that are tuned on; give others.")
        self.rows = choose_rows(unused, self.settings)

    def ask(self, model: Answerer | Path, identity: Any, file: Path) -> dict[str, Figures]:
        """Figures of a model by task.

        Args:
            model: the model, or its folder, from which it is loaded only if it has not answered yet.
            identity: what tells it from others, as JSON has it.
            file: JSON lines for its answers; beside it a record of what they are answers to.
        """
        record = {"model": identity, "rows": _hash(self.rows), "prompts": _hash(self.prompts)}
        record |= {"settings": asdict(self.settings), "dtype": self.dtype}
        done = file.with_suffix(".json")
        if read_record(done, record, "delete it to have the model answer again") is None:
            done.unlink(missing_ok=True)
            answerer = model if isinstance(model, Answerer) else Answerer.from_pretrained(str(model), self.dtype)
            write_rows(file, answer_rows(answerer, self.rows, self.prompts, self.settings))
            write_json(done, record)
        return figures_by_task(Journal(file, needed=ANSWERED_FIELDS).rows)


def tune_and_ask(model: str, manifest: Path, questioner: Questioner, settings: TuningSettings) -> KindResult:
    """Tune the model on a manifest, and have it answer.

    Args:
        model: folder or Hub id of the untouched model.
        manifest: of a kind; the tuned model and its answers are written beside it.
        questioner: knows the rows.
        settings: how to tune.
    """
    tuned = manifest.parent / MODEL_FOLDER
    losses = finished_losses(model, manifest, tuned, settings)
    if losses is None:
        losses = tune_on_answers(model, manifest, tuned, settings)
    record = read_json_object(tuned / TUNING_FILE, "delete it to tune the model anew")
    figures = questioner.ask(tuned, record, manifest.parent / "after.jsonl")
    answers = Journal(manifest, needed={"text": str}).rows  # stories without audio have no path
    return KindResult(len(answers), mean_words(answers), losses, figures)


def activation_data_report(model: str, found: ActivationData, steps: int) -> str:
    """The comparison in Markdown: tables, what is left out, how to read it."""
    left_out = "".join(f"- {line}\n" for line in found.left_out_lines())
    parts = [
        f"`{model}`, tuned on different data\n",
        _markdown(found.lines()),
        _markdown(found.kind_lines()),
        left_out,
    ]
    return "\n".join([part for part in parts if part] + [HOW_TO_READ.format(steps=steps)])


@figure_style()
def draw_activation_data(found: ActivationData) -> Any:
    """Following rate, repeat rate and word error rate as bars, in groups by task."""
    columns = found.columns()
    width = 0.8 / len(columns)
    figure, panels = make_panels(len(PANELS), len(PANELS), PANEL_WIDTH, PANEL_HEIGHT)
    for name, panel in zip(PANELS, panels, strict=True):
        tasks = [task for task, figures in found.before.items() if getattr(figures, name) is not None]
        for column, (kind, figures) in enumerate(columns.items()):
            places = [index + (column - (len(columns) - 1) / 2) * width for index in range(len(tasks))]
            heights = [getattr(figures[task], name) for task in tasks]
            panel.bar(places, heights, width, label=kind, color="0.6" if kind == BEFORE else f"C{column - 1}")
        panel.set(title=name.replace("_", " "), ylim=(0, None))
        panel.set_xticks(range(len(tasks)), tasks, rotation=20 if len(tasks) > 1 else 0)
        panel.grid(visible=False, axis="x")
        panel.set_axisbelow(True)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
    return figure


def _require_prompts(prompts: Mapping[str, list[str]]) -> None:
    missing = [task for task in (STORY_TASK, *FALLBACK_TASKS.values()) if task not in prompts]
    if missing:
        raise ValueError(f"The prompts have no instructions for {', '.join(missing)}; add them.")


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *others = lines
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, ["---"] * len(head), *others])


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=repr).encode()).hexdigest()[:16]


__all__ = ["ActivationData", "KindResult", "activation_data_report", "compare_activation_data", "draw_activation_data"]
