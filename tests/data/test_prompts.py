"""Instructions per task: the bundled table, files of the research code, filling in fields."""

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import reference_folder

from modeling_salmonn.data.prompts import choose_prompt, format_prompt, load_prompts, with_aliases


PROMPTS = load_prompts()
AUDIO = "<Speech><SpeechHere></Speech>"
TRAINED_TASKS = {
    "asr",
    "translation",
    "audio_caption",
    "phone_recognition",
    "emotion_recognition",
    "music_caption",
    "overlapped_speech",
    "speaker_verification",
    "gender_recognition",
    "speech_qa",
    "audio_qa",
    "music_qa",
}
OTHER_TASKS = {"qa", "speaker_count", "keyword_extraction", "spoken_query", "slot_filling", "story", "co_reasoning"}
TASKS = sorted(TRAINED_TASKS | OTHER_TASKS)
FIELDS = {
    "translation": ["language"],
    "speech_qa": ["question"],
    "audio_qa": ["question"],
    "music_qa": ["question"],
    "qa": ["question"],
    "slot_filling": ["slots"],
}


@pytest.fixture(scope="module")
def prompts() -> dict[str, list[str]]:
    return load_prompts()


def write_prompts(folder: Path, table: Any) -> Path:
    path = folder / "prompts.json"
    path.write_text(json.dumps(table))
    return path


def test_bundled_table_has_all_tasks(prompts: dict[str, list[str]]) -> None:
    assert sorted(prompts) == TASKS


@pytest.mark.parametrize("task", TASKS)
def test_bundled_task_has_enough_different_instructions(prompts: dict[str, list[str]], task: str) -> None:
    different = {re.sub(r"[^\w{}]+", " ", text).strip().casefold() for text in prompts[task]}
    assert len(different) == len(prompts[task])
    assert len(different) >= (6 if task in TRAINED_TASKS else 1 if task == "qa" else 3)


def test_bundled_instructions_belong_to_one_task(prompts: dict[str, list[str]]) -> None:
    counts = Counter(text for texts in prompts.values() for text in texts)
    assert [text for text, count in counts.items() if count > 1] == ["{question}"]  # a bare question fits any audio


@pytest.mark.parametrize("task", TASKS)
def test_bundled_instructions_have_no_placeholder_and_the_fields_of_their_task(
    prompts: dict[str, list[str]], task: str
) -> None:
    for text in prompts[task]:
        assert "<" not in text
        assert text == text.strip()
        assert re.findall(r"\{(.*?)\}", text) == FIELDS.get(task, [])
        assert text.count("{") == text.count("}") == len(FIELDS.get(task, []))


def test_reference_prompt_file_loads_without_placeholders() -> None:
    path = reference_folder("tiny") / "train_prompt.json"
    assert load_prompts(path) == {
        "asr": ["Can you transcribe the speech into a written format?"],
        "audiocaption": ["Please describe the audio."],
        "QA": ["{question}"],
    }


@pytest.mark.parametrize(
    ("text", "instruction"),
    [
        (f"{AUDIO} Listen. {{}}", "Listen. {question}"),
        (f" {AUDIO}\nListen.", "Listen."),
        (f"{AUDIO} {AUDIO} Compare.", "Compare."),
        (f"What is this? {AUDIO} Say it.", f"What is this? {AUDIO} Say it."),
        ("Fill in {slots}.", "Fill in {slots}."),
    ],
)
def test_load_prompts_removes_leading_placeholders_only(tmp_path: Path, text: str, instruction: str) -> None:
    assert load_prompts(write_prompts(tmp_path, {"task": [text]})) == {"task": [instruction]}


def test_load_prompts_takes_one_string_for_a_task(tmp_path: Path) -> None:
    path = write_prompts(tmp_path, {"asr": f"{AUDIO} Listen."})
    assert load_prompts(str(path)) == {"asr": ["Listen."]}


def test_load_prompts_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no prompt file .*absent\.json; give a JSON file"):
        load_prompts(tmp_path / "absent.json")


@pytest.mark.parametrize(
    "content",
    [b"asr: Listen.", b"", b"[" * 100_000, b'{"asr": ["a"], "asr": ["b"]}', b"1" * 5000],
    ids=["yaml", "empty", "nested", "double", "number"],
)
def test_load_prompts_not_json_raises(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "prompts.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"prompts\.json is not JSON .*give a JSON file that maps tasks to lists"):
        load_prompts(path)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (["Listen."], r"prompts\.json holds a list, but it needs an object .*; give a JSON file that maps"),
        ({"asr": {"a": "b"}}, r"task 'asr' of .*prompts\.json holds a dict; it needs a list of strings"),
        ({"asr": None}, r"task 'asr' of .*prompts\.json holds a NoneType; it needs a list of strings"),
        ({"asr": ["Listen.", 3]}, r"task 'asr' of .*prompts\.json lists a int \(3\); it needs a list of strings"),
        ({"asr": []}, r"task 'asr' of .*prompts\.json has an empty list; it needs at least one"),
    ],
)
def test_load_prompts_wrong_content_raises(tmp_path: Path, table: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_prompts(write_prompts(tmp_path, table))


def test_load_prompts_tells_the_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text('{"asr": ["Listen."],\n "story": ["Tell."]\n "qa": ["What?"]}')
    with pytest.raises(ValueError, match=r"line 3 of .*prompts\.json is not JSON"):
        load_prompts(path)


@pytest.mark.parametrize(
    ("task", "instruction"),
    [
        ("audiocaption_v2", PROMPTS["audio_caption"][0]),
        ("aac", PROMPTS["audio_caption"][0]),
        ("music_description", PROMPTS["music_caption"][0]),
        ("speech_separation", PROMPTS["overlapped_speech"][0]),
        ("translation_ec", PROMPTS["translation"][0].replace("{language}", "Chinese")),
        ("translation_ce", PROMPTS["translation"][0].replace("{language}", "English")),
        ("translation_en2de", PROMPTS["translation"][0].replace("{language}", "German")),
        ("gender_QA", "{question}"),
        ("asr", PROMPTS["asr"][0]),
    ],
)
def test_alias_has_the_instructions_of_its_task(task: str, instruction: str) -> None:
    assert with_aliases(PROMPTS)[task][0] == instruction


def test_names_with_instructions_of_their_own_keep_them() -> None:
    prompts = {"audiocaption": ["Theirs."], "audio_caption": ["Ours."], "QA": ["{question}"]}
    known = with_aliases(prompts)
    assert known["audiocaption"] == ["Theirs."]
    assert known["audiocaption_v2"] == known["audio_caption"] == ["Ours."]
    assert known["inference_QA"] == known["qa"] == ["{question}"]
    assert "translation_ec" not in known  # nor is there a translation


def test_format_prompt_fills_named_fields_and_ignores_others() -> None:
    assert format_prompt("{a} and {b} and {a}", a="1", b="2", c="3") == "1 and 2 and 1"


@pytest.mark.parametrize("value", ["{language}", "{}", "{{x}}", "{question.__class__}", r"\1 \g<0>", "}{"])
def test_format_prompt_inserts_values_literally(value: str) -> None:
    assert format_prompt("{question} in {language}", question=value, language="German") == f"{value} in German"


@pytest.mark.parametrize("template", ['Reply as {"a": 1}.', "{}", "{0}", "{a b}", "{question.__class__}", "{"])
def test_format_prompt_keeps_braces_that_are_no_field(template: str) -> None:
    assert format_prompt(template, question="Why?") == template


@pytest.mark.parametrize(("fields", "given"), [({}, "none"), ({"question": "Why?"}, "question")])
def test_format_prompt_missing_field_raises(fields: dict[str, str], given: str) -> None:
    with pytest.raises(ValueError, match=rf"needs the field 'language', .* given are: {given}; pass language="):
        format_prompt("Translate into {language}.", **fields)


def test_choose_prompt_draws_every_instruction_and_repeats_with_the_seed(prompts: dict[str, list[str]]) -> None:
    rng, again = random.Random(0), random.Random(0)
    drawn = [choose_prompt(prompts, "asr", rng) for _ in range(200)]
    assert set(drawn) == set(prompts["asr"])
    assert drawn == [choose_prompt(prompts, "asr", again) for _ in range(200)]


def test_choose_prompt_fills_fields(prompts: dict[str, list[str]]) -> None:
    text = choose_prompt(prompts, "translation", random.Random(0), language="Japanese")
    assert "Japanese" in text
    assert "{" not in text


def test_choose_prompt_missing_field_raises(prompts: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match="needs the field 'slots'"):
        choose_prompt(prompts, "slot_filling", random.Random(0))


def test_choose_prompt_unknown_task_raises() -> None:
    with pytest.raises(ValueError, match="no prompts for the task 'singing'; the known tasks are: asr, story"):
        choose_prompt({"story": ["Tell."], "asr": ["Write."]}, "singing", random.Random(0))
