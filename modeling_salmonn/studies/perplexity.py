"""How likely a model finds answers of each kind under each instruction, before and after activation tuning (Fig. 4).

`training/overfitting.py` tells why. The stand-in for `P(answer | audio)` is here the mean over all instructions.

```
OUTPUT/before/losses.jsonl  mean loss per token by probe, kind of answer and instruction; with settings.json
OUTPUT/perplexity.json      {"before": {kind: {"probes": n, "under": {instruction: {"value", "low", "high"}}}}, ...}
OUTPUT/perplexity.png       OUTPUT/perplexity.md
```
"""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from modeling_salmonn.activation.writing import OPEN_QUESTIONS, QUESTION_TASK
from modeling_salmonn.data.files import Journal, Kinds
from modeling_salmonn.data.pictures import require_matplotlib
from modeling_salmonn.data.prompts import format_prompt, load_prompts
from modeling_salmonn.data.rows import Row
from modeling_salmonn.evaluation.answering import Answerer, require_dtype
from modeling_salmonn.evaluation.baselines import load_answerer
from modeling_salmonn.evaluation.harness import claim_answers
from modeling_salmonn.evaluation.metrics import Metric, ratio
from modeling_salmonn.evaluation.summary import score
from modeling_salmonn.hub.devices import AUTO
from modeling_salmonn.hub.weights_hash import weights_hash
from modeling_salmonn.studies.plots import figure_style, make_panels, write_study
from modeling_salmonn.training.overfitting import LONG_KINDS, NO_INSTRUCTION, SHORT_KINDS, probe_losses, read_probes


KINDS = SHORT_KINDS | {"qa": QUESTION_TASK} | LONG_KINDS  # as in training/overfitting.py
MEAN = "mean"  # over the instructions
COLUMNS = (NO_INSTRUCTION, *KINDS, MEAN)
LOSSES_FILE, KEYS = "losses.jsonl", ("probe", "kind", "instruction")
LOSS_FIELDS: Kinds = {"probe": int, "kind": str, "instruction": str, "loss": (int, float)}
NAME = "perplexity"
# Only its intervals are needed, from statistics of our own: a probe's loss, and a one to divide by.
PERPLEXITY = Metric(lambda references, answers: np.empty((0, 2)), lambda sums: np.exp(ratio(sums)))
PANEL_WIDTH, PANEL_HEIGHT = 5.2, 3.4  # inches
READING = """\
A row is a kind of answer and a column the instruction under which it is given; each cell is the perplexity per token
of the probes' own texts, with its 95 % interval over probes: the lower, the more readily the model says the text. All
colours share one logarithmic scale, and a frame marks an answer under the instruction that asks for it. By Bayes'
rule, P(Y|X,I) ~ P(Y|X) P(I|Y,X). The level of a row reflects P(Y|X), what the model is inclined to say about the clip
whatever is asked; its stand-ins are `{mean}`, the geometric mean over the instructions, and `{nothing}`, without any.
The differences along a row reflect the pull of the instruction: where it counts, the frame is the lowest. A model that
over-fits to its tasks has transcripts and captions that are low in all columns, and stories that are high even in
their frame. Activation tuning should bring down stories and answers to questions, and leave transcripts and captions
in their frames about where they were; if these rise too, it has gone too far. Compare along a row, and before with
after, but not one row with another: texts of different kinds are not equally hard to foresee. Probes that a model has
written itself are too easy for that model."""

Losses = dict[tuple[str, str], float]
Table = dict[str, dict[str, Any]]


def measure_perplexities(
    models: Mapping[str, str], probes: Sequence[Row], output: Path, dtype: str = "float32", device: str = AUTO
) -> dict[str, Table]:
    """Perplexities of the probes' answers, as `perplexity.json` has them, by the names of the models.

    What an earlier call has measured is not measured again.

    Args:
        models: folder or Hub id of each SALMONN, such as `before` and `after`.
        probes: as `read_probes_of_kinds` gives them.
        output: folder to write to.
        dtype, device: of the models.
    """
    require_matplotlib()
    require_dtype(dtype)
    tables = {}
    for name, model in models.items():
        answerer = load_answerer(model, dtype, device)
        if not isinstance(answerer, Answerer):
            raise ValueError(f"{model} is no SALMONN; give its folder or Hub id.")
        losses = measure_losses(answerer, probes, output / name, dtype)
        del answerer  # before the next one is loaded
        tables[name] = perplexity_table(losses)
    titles = {}
    for name, model in models.items():
        titles[f"{name}: {Path(model).name}"] = tables[name]
    write_study(output, NAME, tables, perplexity_report(tables), draw_tables(titles))
    return tables


def read_probes_of_kinds(file: str) -> list[Row]:
    """Probes with a `story` and at least one of `transcript`, `caption` and `qa`, the answer to their `question`."""
    probes = read_probes(file, [kind for kind in KINDS if kind not in LONG_KINDS])
    for index, probe in enumerate(probes):
        if probe.get("qa") and not probe.get("question"):
            raise ValueError(f"Probe {index} of {file} has 'qa' but no 'question'; add the question that it answers.")
    return probes


def measure_losses(answerer: Answerer, probes: Sequence[Row], output: Path, dtype: str) -> list[Losses]:
    """Mean loss per token of each answer of each probe under each instruction, kept in `losses.jsonl`."""
    prompts = load_prompts()
    instructions = [instructions_of(probe, prompts) for probe in probes]
    claim_answers(output, probes, weights=weights_hash(answerer.model), dtype=dtype, instructions=instructions)
    journal = Journal(output / LOSSES_FILE, KEYS, LOSS_FIELDS)
    model, processor = answerer.model, answerer.processor
    for index, probe in enumerate(tqdm(probes, desc="Probes", disable=None)):
        texts = instructions[index]
        given = [kind for kind in KINDS if probe.get(kind)]
        if all(key in journal.by_key for key in product([index], given, texts)):
            continue
        for (kind, name), loss in probe_losses(model, processor, probe, KINDS, texts, model.device).items():
            journal.append({"probe": index, "kind": kind, "instruction": name, "loss": loss})
    losses: list[Losses] = [{} for _ in probes]
    for row in journal.rows:
        if not 0 <= row["probe"] < len(probes):
            raise ValueError(
                f"{journal.file} has a loss of the probe {row['probe']} of {len(probes)}; delete its line."
            )
        losses[row["probe"]][row["kind"], row["instruction"]] = row["loss"]
    return losses


def instructions_of(probe: Row, prompts: Mapping[str, list[str]]) -> dict[str, str]:
    """No instruction, and the first one for each kind of answer; a probe without a question gets an open one."""
    question = probe.get("question") or OPEN_QUESTIONS[0]
    instructions = {NO_INSTRUCTION: ""}
    for kind, task in KINDS.items():
        instructions[kind] = format_prompt(prompts[task][0], question=question)
    return instructions


def perplexity_table(losses: Sequence[Losses]) -> Table:
    """Perplexities with 95 % intervals over probes, by kind of answer and instruction, of losses in nats per token.

    `mean` among the instructions is over those that ask for something.
    """
    table: Table = {}
    for kind in KINDS:
        own = [probe for probe in losses if (kind, NO_INSTRUCTION) in probe]
        if not own:
            continue
        columns = {}  # losses under each instruction, one for each probe
        for name in (NO_INSTRUCTION, *KINDS):
            columns[name] = np.array([probe[kind, name] for probe in own])
        columns[MEAN] = np.mean([columns[name] for name in KINDS], axis=0)  # of losses: geometric of perplexities
        under = {}
        for name, column in columns.items():
            under[name] = score(PERPLEXITY, np.column_stack([column, np.ones(len(own))]))
        table[kind] = {"probes": len(own), "under": under}
    return table


def perplexity_report(tables: Mapping[str, Table]) -> str:
    """How to read the perplexities, and all of them as a table: models below each other within each kind."""
    lines = [f"| answer | model | probes | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 3) + "|"]
    for kind in next(iter(tables.values())):
        for name, table in tables.items():
            under = [_show(table[kind]["under"][column]) for column in COLUMNS]
            lines.append(f"| {kind} | {name} | {table[kind]['probes']} | {' | '.join(under)} |")
    reading = READING.format(mean=MEAN, nothing=NO_INSTRUCTION)
    return "\n".join(["# Perplexity of answers under instructions", "", reading, "", *lines, ""])


@figure_style()
def draw_tables(tables: Mapping[str, Table]) -> Any:
    """A figure with a heat map for each model, side by side, by their titles; with one scale of colours."""
    drawn, panels = make_panels(len(tables), len(tables), PANEL_WIDTH, PANEL_HEIGHT)
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    grids = []  # (kinds, instructions), one for each model
    for table in tables.values():
        grid = np.empty((len(table), len(COLUMNS)))
        for row, entry in enumerate(table.values()):
            grid[row] = [entry["under"][column]["value"] for column in COLUMNS]
        grids.append(grid)
    norm = LogNorm(1, max(2.0, *map(np.max, grids)))  # one scale for all; a perplexity is 1 at least
    for panel, (title, table), grid in zip(panels, tables.items(), grids, strict=True):
        image = panel.imshow(grid, norm=norm, cmap="viridis_r", aspect="auto")
        for (row, column), value in np.ndenumerate(grid):
            color = "white" if norm(value) > 0.5 else "black"  # the upper half of the colours is dark
            panel.text(column, row, _digits(value), ha="center", va="center", color=color)
        for row, kind in enumerate(table):  # a frame around the answer under its own instruction
            corner = COLUMNS.index(kind) - 0.44, row - 0.44
            panel.add_patch(Rectangle(corner, 0.88, 0.88, fill=False, edgecolor="crimson", linewidth=2))
        panel.axvline(len(COLUMNS) - 1.5, color="white", linewidth=4)  # the mean is no instruction
        panel.grid(False)
        panel.set_title(title)
        panel.set_xticks(range(len(COLUMNS)), COLUMNS)
        panel.set_xlabel("instruction")
        panel.set_yticks(range(len(table)), [f"{kind}\n(n = {row['probes']})" for kind, row in table.items()])
    panels[0].set_ylabel("answer")
    drawn.colorbar(image, ax=panels, label="perplexity per token")
    return drawn


def _digits(value: float) -> str:
    """Three digits, and no exponent."""
    if value < 10:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _show(found: Mapping[str, float]) -> str:
    return f"{_digits(found['value'])} ({_digits(found['low'])} to {_digits(found['high'])})"
