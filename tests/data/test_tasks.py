"""Tasks as data: the bundled table, tasks of one's own, names and aliases, references."""

from pathlib import Path

import pytest

from modeling_salmonn.data.tasks import Task, canonical_name, choose_tasks, columns_of, load_tasks


def test_paper_has_fifteen_tasks_on_three_levels() -> None:
    tasks = load_tasks()
    levels = [sum(task.level == level for task in tasks.values()) for level in (1, 2, 3)]
    assert levels == [8, 5, 2]


def test_own_tasks_join_the_bundled_ones_and_replace_them(tmp_path: Path) -> None:
    file = tmp_path / "tasks.yaml"
    file.write_text("asr: {instruction: Listen., metrics: [wer]}\nnew: {instruction: Sing., metrics: [rouge_l]}\n")
    tasks = load_tasks(file)
    assert tasks["asr"].instruction == "Listen."
    assert tasks["new"].metrics == ["rouge_l"]
    assert "story" in tasks


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("new: {metrics: [wer]}", "needs an instruction"),
        ("new: {instruction: Sing., metric: [wer]}", "may have"),
        ("new: {instructions: [], metrics: [wer]}", "needs an instruction"),
        ("new: {rows: {task: song}, metrics: [wer]}", "needs an instruction"),
        ("new: {instruction: Sing., place: here}", "may have"),
        ("[new]", "needs to map names"),
        (
            "new:\n  {instruction: Sing., rule: story}\nother: 3",
            "line 3 of .* needs to map the name of a task to its fields",
        ),
        ("1: {instruction: Sing., metrics: [wer]}", "line 1 of .* needs to map the name of a task to its fields"),
        (
            "new: {instruction: Sing., metrics: wer}",
            "In line 1 of .*: metrics of the task 'new' is 'wer', but it needs list",
        ),
        ("new: {instruction: Sing., metrics: [1]}", "metrics of the task 'new'.0. is 1, but it needs text"),
        (
            "new: {instruction: Sing., metrics: [wer], level: high}",
            "level of the task 'new' is 'high', but it needs int",
        ),
        ("new: {instruction: Sing., metrics: [wer], rows: [asr]}", "rows of the task 'new' is .*, but it needs"),
        (
            "new: {instruction: Sing., metrics: [wer], new_tokens: 0}",
            "new_tokens of the task 'new' must be at least 1",
        ),
        (
            "new: {instruction: Sing., metrics: [wer], new_tokens: '9'}",
            "new_tokens of the task 'new' is '9', but it needs int",
        ),
        ("new: {instruction: A., metrics: [wer]}\nnew: {}", "Line 2 of .* gives the key 'new' again, after line 1"),
        ("new: {instruction: [", "is not YAML"),
    ],
)
def test_broken_file_of_tasks_raises(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "tasks.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_tasks(file)


def test_missing_file_of_tasks_raises() -> None:
    with pytest.raises(ValueError, match=r"no file of tasks nothing\.yaml"):
        load_tasks("nothing.yaml")


def test_tasks_are_chosen_by_levels_names_and_aliases_and_each_comes_once() -> None:
    tasks = load_tasks()
    assert [task.name for task in choose_tasks(tasks, ["level3"])] == ["story", "co_reasoning"]
    assert [task.name for task in choose_tasks(tasks, ["sac", "level3", "asr"])] == ["co_reasoning", "story", "asr"]
    assert [task.name for task in choose_tasks(tasks, ["audiocaption"])] == ["audio_caption"]
    with pytest.raises(ValueError, match="no task 'level4'; there are all, level1"):
        choose_tasks(tasks, ["level4"])


def test_all_are_the_tasks_that_are_measured() -> None:
    tasks = load_tasks()
    chosen = choose_tasks(tasks, ["all"])
    assert all(task.metrics or task.rule for task in chosen)
    assert {"translation", "speaker_count", "audio_qa", "music_qa", "qa", "zh2en"} == tasks.keys() - {
        task.name for task in chosen
    }


def test_names_of_the_table_are_told_apart() -> None:
    names = [name for task in load_tasks().values() for name in task.names]
    assert len(names) == len(set(names))


def test_alias_stands_for_a_task_and_its_columns() -> None:
    assert canonical_name("audiocaption_v2") == canonical_name("aac") == "audio_caption"
    assert canonical_name("singing") == "singing"
    assert columns_of("translation_en2de") == {"task": "translation", "language": "German"}
    assert columns_of("singing") == {"task": "singing"}
    assert columns_of(None) == {"task": None}


def test_part_of_a_task_has_its_instructions_with_columns_filled_in(tmp_path: Path) -> None:
    file = tmp_path / "tasks.yaml"
    file.write_text("en2fr: {rows: {task: translation, language: French}, metrics: [bleu]}\n")
    french = load_tasks(file)["en2fr"]
    assert french.instruction == "Translate what you hear into French."
    assert french.instructions[0] == "Say in French what the speaker says."


def test_task_chooses_rows_by_their_columns() -> None:
    german = load_tasks()["en2de"]
    assert german.chooses({"task": "translation", "language": "German"})
    assert not german.chooses({"task": "translation", "language": "French"})
    assert Task("asr", "Listen.", ["wer"]).chooses({"task": "asr"})


def test_task_chooses_rows_by_any_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "tasks.yaml").write_text(
        "sounds: {rows: {task: aac}, instruction: Tell., metrics: [mention], aliases: [noises]}\n"
    )
    tasks = load_tasks(tmp_path / "tasks.yaml")
    assert all(tasks["en2de"].chooses({"task": name}) for name in ("en2de", "translation_en2de"))
    assert not tasks["en2de"].chooses({"task": "translation_en2ja"})
    for name in ("audio_caption", "aac", "audiocaption"):
        assert tasks["audio_caption"].chooses({"task": name})
        assert tasks["sounds"].chooses({"task": name})
    assert tasks["sounds"].chooses({"task": "noises"})
    assert not tasks["audio_caption"].chooses({"task": "noises"})
    assert not tasks["audio_caption"].chooses({"text": "a tone"})


def test_references_are_texts_lists_or_split() -> None:
    split = Task("ke", "List.", ["keywords"], separator=",")
    assert split.references({"text": "red car, blue"}) == ["red car", "blue"]
    several = Task("sqqa", "Answer.", ["contains_answer"], reference="answers")
    assert several.references({"answers": ["7", "seven"]}) == ["7", "seven"]
    assert several.references({"answers": ["7"], "references": ["7", "seven"]}) == ["7", "seven"]
    with pytest.raises(ValueError, match="has no 'answers'"):
        several.references({"text": "7"})
    assert load_tasks()["story"].references({}) == []
