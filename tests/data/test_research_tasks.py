"""Annotation files of the research code, with its own names of tasks."""

import pytest
from conftest import reference_folder

from modeling_salmonn import SalmonnProcessor
from modeling_salmonn.data.clips import BadClips, ClipReader
from modeling_salmonn.data.examples import ExampleMaker, ExampleSet
from modeling_salmonn.data.prompts import load_prompts
from modeling_salmonn.data.research_tasks import with_research_tasks
from modeling_salmonn.data.rows import load_rows
from modeling_salmonn.data.sources import DataSource


PROMPTS = load_prompts()
QUESTION = "Do you only hear the same person talking?"


@pytest.mark.parametrize("own_prompts", [False, True])
def test_annotation_file_is_read_as_it_is(own_prompts: bool, bucket_processor: SalmonnProcessor) -> None:
    folder = reference_folder("tiny")
    prompts = load_prompts(folder / "train_prompt.json" if own_prompts else None)
    maker = ExampleMaker(prompts, ClipReader(bucket_processor.feature_extractor, BadClips(0)))
    rows = load_rows([DataSource(str(folder / "annotation.json"))])
    speech, sound, question = (ExampleSet(rows, maker)[index] for index in range(3))
    assert [example["task"] for example in (speech, sound, question)] == ["asr", "audiocaption", "QA"]
    assert speech["instruction"] in prompts["asr"]
    assert sound["instruction"] in prompts["audiocaption" if own_prompts else "audio_caption"]
    assert question["instruction"] == QUESTION


@pytest.mark.parametrize(
    ("task", "instruction"),
    [
        ("audiocaption_v2", PROMPTS["audio_caption"][0]),
        ("music_description", PROMPTS["music_caption"][0]),
        ("speech_separation", PROMPTS["overlapped_speech"][0]),
        ("translation_ec", PROMPTS["translation"][0].replace("{language}", "Chinese")),
        ("translation_en2de", PROMPTS["translation"][0].replace("{language}", "German")),
        ("QA", "{question}"),
        ("asr", PROMPTS["asr"][0]),
    ],
)
def test_name_of_the_research_code_has_our_instructions(task: str, instruction: str) -> None:
    assert with_research_tasks(PROMPTS)[task][0] == instruction


def test_instructions_of_the_prompt_file_win() -> None:
    prompts = {"audiocaption": ["Theirs."], "audio_caption": ["Ours."]}
    known = with_research_tasks(prompts)
    assert known["audiocaption"] == ["Theirs."]
    assert known["audiocaption_v2"] == known["audio_caption"] == ["Ours."]
    assert "translation_ec" not in known  # nor is there a translation
