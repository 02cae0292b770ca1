"""Annotation files of the research code, with its own names of tasks."""

import pytest
from conftest import reference_folder

from modeling_salmonn import SalmonnProcessor
from modeling_salmonn.data.clips import BadClips, ClipReader
from modeling_salmonn.data.examples import ExampleMaker, ExampleSet
from modeling_salmonn.data.prompts import load_prompts
from modeling_salmonn.data.rows import load_rows
from modeling_salmonn.data.sources import DataSource


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
