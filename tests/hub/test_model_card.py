"""The model card as it goes to the Hub, and the scores beside it."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import tiny_config
from huggingface_hub import ModelCard, parse_eval_result_entries

from modeling_salmonn import SalmonnConfig
from modeling_salmonn.evaluation.run import name_data
from modeling_salmonn.evaluation.summary import write_model_index
from modeling_salmonn.hub.model_card import (
    eval_results_yaml,
    published_card,
    unstated_parts,
    write_model_card,
)


SCORE = {"value": 0.25, "low": 0.2, "high": 0.3}
SUMMARY = {"asr": {"rows": 40, "metrics": {"wer": SCORE}}}


@pytest.fixture
def config() -> SalmonnConfig:
    """Of a model whose language model alone is on the Hub."""
    config = tiny_config(audio=False)
    config.text_model_id, config.speech_model_id = "lmsys/vicuna-7b-v1.5", "/models/whisper"
    return config


def rewritten(card: ModelCard, folder: Path) -> ModelCard:
    card.save(folder / "README.md")
    return ModelCard.load(folder / "README.md")


def test_folder_without_a_card_gets_the_template(config: SalmonnConfig, tmp_path: Path) -> None:
    card = rewritten(published_card(tmp_path, "lab/salmonn-7b", config), tmp_path)
    assert card.data.base_model == ["lmsys/vicuna-7b-v1.5"]
    assert (card.data["library_name"], card.data["pipeline_tag"]) == ("transformers", "audio-text-to-text")
    assert "\n# salmonn-7b\n" in card.text
    assert 'model="lab/salmonn-7b"' in card.text
    assert 'revision="COMMIT"' in card.text
    assert "| language model | lmsys/vicuna-7b-v1.5 | not stated yet |" in card.text
    assert "/models/whisper" not in card.content
    assert "the metadata have no license" in unstated_parts(card)
    assert "Training data: not stated yet." in unstated_parts(card)
    assert list(tmp_path.iterdir()) == [tmp_path / "README.md"]


def test_card_of_a_conversion_names_the_repository_it_is_pushed_to(config: SalmonnConfig, tmp_path: Path) -> None:
    write_model_card(tmp_path, "converted", config)
    before = (tmp_path / "README.md").read_text()
    assert 'model="converted"' in before
    assert "COMMIT" not in before
    card = published_card(tmp_path, "lab/salmonn-7b", config)
    assert 'model="lab/salmonn-7b"' in card.text
    assert 'model="converted"' not in card.text
    assert (tmp_path / "README.md").read_text() == before


def test_card_of_its_makers_own_is_only_completed(config: SalmonnConfig, tmp_path: Path) -> None:
    text = "---\nlicense: mit\ntags: [speech]\nbase_model: my/base\n---\n# Mine\n\nMy words.\n"
    (tmp_path / "README.md").write_text(text)
    card = rewritten(published_card(tmp_path, "lab/mine", config), tmp_path)
    assert card.text.strip() == "# Mine\n\nMy words."
    assert (card.data.license, card.data.base_model) == ("mit", "my/base")
    assert card.data.tags == ["speech", "salmonn", "audio"]
    assert unstated_parts(card) == []


def test_scores_of_an_evaluation_are_shown_and_listed_for_leaderboards(config: SalmonnConfig, tmp_path: Path) -> None:
    write_model_card(tmp_path, "tiny", config)
    readme = tmp_path / "README.md"
    name, hub_id = name_data(["librispeech_clean=/data/LibriSpeech"])
    write_model_index(readme, "tiny", name, SUMMARY, hub_id)
    own, none = name_data(["rows/own.jsonl"])
    write_model_index(readme, "tiny", own, SUMMARY, none)
    card = published_card(tmp_path, "lab/tiny", config)
    assert "| librispeech_clean | asr | wer | 40 | 0.25 | 0.2 to 0.3 |" in card.text
    assert "| own.jsonl | asr | wer | 40 | 0.25 | 0.2 to 0.3 |" in card.text
    content = eval_results_yaml(card)
    assert content is not None
    (entry,) = parse_eval_result_entries(yaml.safe_load(content))  # own data are on no leaderboard
    assert (entry.dataset_id, entry.task_id, entry.value) == ("openslr/librispeech_asr", "librispeech_clean", 0.25)
    assert entry.notes == "asr: wer; low 0.2, high 0.3, rows 40"


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (["librispeech_clean"], ("librispeech_clean", "openslr/librispeech_asr")),
        (["librispeech_clean", "librispeech_other"], ("librispeech_clean, librispeech_other", None)),
        (["data/a=b.jsonl"], ("a=b.jsonl", None)),
    ],
)
def test_data_of_an_evaluation_are_named(sources: list[str], expected: Any) -> None:
    assert name_data(sources) == expected


def test_card_without_scores_has_no_file_of_results(config: SalmonnConfig, tmp_path: Path) -> None:
    card = published_card(tmp_path, "lab/tiny", config)
    assert eval_results_yaml(card) is None
    assert "Scores: not stated yet." in card.text


def test_card_with_broken_metadata_is_refused(config: SalmonnConfig, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: [mit\n---\nText.\n")
    with pytest.raises(ValueError, match=r"(?s)The metadata of .*README\.md cannot be read .*mend what is between"):
        published_card(tmp_path, "lab/tiny", deepcopy(config))
