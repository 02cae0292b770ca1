"""The model card of a folder: `README.md`, with what the configuration tells and what was measured.

- a folder without a card gets the template, in which what nobody but its maker knows is "not stated yet"
- of a card that is there, metadata that are missing are added, and the sections between `<!-- use -->` or
  `<!-- results -->` and `<!-- end -->` are written anew; everything else stays
- scores come from the card's `model-index`, into which `salmonn evaluate --card` puts them
"""

import os
import re
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml

from modeling_salmonn.configuration_salmonn import SalmonnConfig
from modeling_salmonn.data.text_files import read_text


CARD_FILE = "README.md"
GROUP = "group"  # the detail of a score that is of some rows of a data set alone
EVAL_RESULTS_FILE = ".eval_results/salmonn.yaml"
UNSTATED = "not stated yet"
Card: TypeAlias = Any  # a `ModelCard`, which does not declare the fields of its metadata
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
TAGS = ["salmonn", "audio"]

BODY = """
# {title}

An auditory language model: it hears speech, sounds and music and answers instructions about them.
Architecture: SALMONN (Tang et al., ICLR 2024, arXiv 2310.13289).

| part | size |
|---|---|
| speech encoder | Whisper, {speech_layers} layers of {speech_width} |
| audio encoder | {audio} |
| Q-Former | {qformer_layers} layers of {qformer_width}, {queries} query per {window:.2f} s window |
| language model | {text_type}, {text_layers} layers of {text_width} |
| LoRA | rank {rank}, training scale {scaling} |

## Use

<!-- use -->
<!-- end -->

## Bases and licences

| part | base | licence |
|---|---|---|
{bases}

The licences of the Whisper, BEATs and language-model weights apply to this folder; name them here before you share it,
and the one of the whole as `license` in the metadata.

## Data

Training data: {unstated}.

## Results

<!-- results -->
<!-- end -->

## Limits

- Answers may be wrong and fluent at once. Do not rely on them where a mistake matters.
- Task over-fitting: unknown instructions may be answered with a transcript or a caption. A lower LoRA scale
  (`lora_scale`) counters it, at the cost of exactness (paper, section 3.3).
- Languages, recordings and tasks that it was not made for: {unstated}.
"""

USE = """\
```python
from transformers import pipeline

pipe = pipeline("audio-text", model="{model}", trust_remote_code=True)
pipe("clip.wav", text="What do you hear?")
```"""

PINNED_USE = """
`trust_remote_code` runs the code of this repository, whatever it will be on the day you load it. So read it, and name
the commit that you have read: `pipeline(..., revision="COMMIT")`, which `AutoModel` and `AutoProcessor` take too."""


def write_model_card(folder: Path, title: str, config: SalmonnConfig) -> None:
    """Write `README.md` with what the configuration tells."""
    card = new_card(title, config)
    fill_sections(card, title, is_on_hub=False)
    card.save(folder / CARD_FILE)


def published_card(folder: Path, repo_id: str, config: SalmonnConfig) -> Card:
    """The card of a folder as it goes to the Hub; the one in the folder stays as it is.

    Raises:
        ValueError: if the folder has a card whose metadata cannot be read.
    """
    file = folder / CARD_FILE
    card = load_card(file) if file.is_file() else new_card(repo_id.rpartition("/")[2], config)
    for field, usual in (("library_name", "transformers"), ("pipeline_tag", "audio-text-to-text")):
        card.data[field] = card.data.get(field) or usual
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *TAGS]))
    card.data.base_model = card.data.base_model or public_bases(config) or None
    fill_sections(card, repo_id, is_on_hub=True)
    return card


def new_card(title: str, config: SalmonnConfig) -> Card:
    """The template, with what the configuration tells."""
    audio = config.audio_config
    data = ModelCardData(library_name="transformers", pipeline_tag="audio-text-to-text", tags=TAGS)
    body = BODY.format(
        title=title,
        speech_layers=config.speech_config.encoder_layers,
        speech_width=config.speech_config.d_model,
        audio=f"BEATs, {audio.num_hidden_layers} layers of {audio.hidden_size}" if audio is not None else "none",
        qformer_layers=config.qformer_config.num_hidden_layers,
        qformer_width=config.qformer_config.hidden_size,
        queries=config.qformer_config.num_query_tokens,
        window=config.window_seconds,
        text_type=config.text_config.model_type,
        text_layers=config.text_config.num_hidden_layers,
        text_width=config.text_config.hidden_size,
        rank=config.lora_rank,
        scaling=config.lora_scaling,
        bases=_bases_table(config),
        unstated=UNSTATED,
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{body}")


def fill_sections(card: Card, model: str, is_on_hub: bool) -> None:
    """Write the sections of use and of results anew, where a card has them.

    Args:
        card: changed in place.
        model: folder or Hub id that the example of its use loads.
        is_on_hub: whether others load it from there, who are told to pin a commit.
    """
    use = USE.format(model=model) + (PINNED_USE if is_on_hub else "")
    for name, text in (("use", use), ("results", results_table(card.data.eval_results or []))):
        start, end = f"<!-- {name} -->\n", "<!-- end -->"
        before, found, rest = card.text.partition(start)
        if found and end in rest:
            card.text = f"{before}{start}{text}\n{end}{rest.partition(end)[2]}"


def results_table(results: list[EvalResult]) -> str:
    """Markdown of the scores in the metadata of a card."""
    if not results:
        return f"Scores: {UNSTATED}."
    lines = ["| data | task | metric | rows | value | 95 % interval |", "|---|---|---|---|---|---|"]
    for result in results:
        details = result.metric_args or {}
        interval = f"{details['low']} to {details['high']}" if {"low", "high"} <= details.keys() else ""
        cells = [result.dataset_name, result.task_name or result.task_type, result.metric_name or result.metric_type]
        cells += [str(details.get("rows", "")), str(result.metric_value), interval]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def eval_results_yaml(card: Card) -> bytes | None:
    """The scores on whole data sets of the Hub, in the form of its leaderboards: `.eval_results/*.yaml`.

    A leaderboard takes up those whose data set is registered there as a benchmark, with a task of this name.

    Returns:
        The file, or `None` where no score is on a data set that has a Hub id.

    Source: https://huggingface.co/docs/hub/eval-results
    """
    entries = []
    for result in card.data.eval_results or []:
        known = result.metric_args or {}
        if HUB_ID.fullmatch(str(result.dataset_type)) and GROUP not in known:
            details = ", ".join(f"{name} {value}" for name, value in known.items())
            notes = f"{result.task_name or result.task_type}: {result.metric_type}"
            entry = EvalResultEntry(
                dataset_id=result.dataset_type,
                task_id=result.dataset_config or "default",
                value=result.metric_value,
                dataset_revision=result.dataset_revision,
                notes=f"{notes}; {details}" if details else notes,
            )
            entries.append(entry)
    if not entries:
        return None
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True).encode()


def unstated_parts(card: Card) -> list[str]:
    """What a card leaves its readers to guess."""
    parts = [] if card.data.license else ["the metadata have no license"]
    return parts + [line.strip("-| ") for line in card.text.splitlines() if UNSTATED in line]


def public_bases(config: SalmonnConfig) -> list[str]:
    """Hub ids of the bases that a configuration names."""
    names = [getattr(config, f"{part}_model_id") for part in ("speech", "audio", "text")]
    return [name for name in names if name and is_hub_id(name)]


def is_hub_id(name: str) -> bool:
    """Whether a base is named by a Hub id, and not by a path of this machine."""
    return HUB_ID.fullmatch(name) is not None and not os.path.exists(name)


def load_card(card: Path) -> Card:
    """A model card, to be read before any work is done for it.

    Raises:
        ValueError: if there is none, it is no Markdown, or its metadata cannot be read.
    """
    if card.suffix.lower() != ".md":
        raise ValueError(f"{card} is no model card; give its README.md or MODEL_CARD.md.")
    read_text(card, "model card")
    try:
        return ModelCard.load(card, ignore_metadata_errors=False)
    except Exception as error:  # of YAML, and of what huggingface_hub makes of it
        raise ValueError(
            f"The metadata of {card} cannot be read ({error}); mend what is between its '---'."
        ) from error


def _bases_table(config: SalmonnConfig) -> str:
    lines = []
    for part, label in (("speech", "speech encoder"), ("audio", "audio encoder"), ("text", "language model")):
        if getattr(config, f"{part}_config") is not None:
            name = getattr(config, f"{part}_model_id")
            base = name if name and is_hub_id(name) else UNSTATED
            lines.append(f"| {label} | {base} | {UNSTATED} |")
    return "\n".join(lines)
