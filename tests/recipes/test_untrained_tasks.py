"""Rows of the tasks that salmonn-smol is never trained on."""

import json
from pathlib import Path
from typing import Any

import pytest

from modeling_salmonn.data.rows import load_rows
from modeling_salmonn.data.sources import DataSource
from recipes.salmonn_smol.untrained_tasks import order_rows, read_untrained, write_untrained


QUERY = {"file_name": "0.opus", "transcript": "How many days has a week?", "answer": ["seven", "7"], "voice": "a"}
SLOTS = {"file_name": "0.opus", "transcript": "Go to Rome on Friday.", "slot": "day", "answer": ["Friday"]}
SLOTS["slots"] = {"city": "Rome", "day": "Friday"}
SOUND = {"file_name": "0.opus", "transcript": "Which animal is it?", "background": "cat", "answer": ["cat"]}


def make_tasks(folder: Path, **rows: dict[str, Any]) -> Path:
    for name, row in rows.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def test_task_folders_become_rows(tmp_path: Path) -> None:
    query, slots, sound = read_untrained(make_tasks(tmp_path, sqqa=QUERY, slot_filling=SLOTS, coreasoning=SOUND))
    assert query == {
        "path": str(tmp_path / "sqqa" / "0.opus"),
        "task": "spoken_query",
        "text": "seven",
        "answers": ["seven", "7"],
        "transcript": QUERY["transcript"],
    }
    assert (slots["task"], slots["slots"], slots["text"]) == ("slot_filling", "day", "Friday")
    assert (sound["task"], sound["background"], sound["text"]) == ("co_reasoning", "cat", "cat")


def test_manifest_is_one_that_training_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = make_tasks(tmp_path / "tasks", sqqa=QUERY, slot_filling=SLOTS)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    write_untrained(Path("tasks"), Path("elsewhere/rows.jsonl"), stories=tasks / "sqqa")
    assert capsys.readouterr().out == "spoken_query: 1 rows\nslot_filling: 1 rows\nstory: 1 rows\n"
    rows = load_rows([DataSource("elsewhere/rows.jsonl")])
    assert [row["path"] for row in rows] == [
        str(tmp_path / "tasks" / "sqqa" / "0.opus"),
        str(tmp_path / "tasks" / "slot_filling" / "0.opus"),
        str(tmp_path / "tasks" / "sqqa" / "0.opus"),
    ]
    assert rows[2]["text"] == ""


def test_each_slot_of_an_order_is_asked_for() -> None:
    order = {"path": "a.ogg", "text": "A large mocha.", "slots": {"size": "large", "coffeeDrink": "mocha"}}
    rows = order_rows([order, {"path": "b.ogg", "text": "Hello."}])
    assert [(row["slots"], row["text"], row["transcript"]) for row in rows] == [
        ("size", "large", order["text"]),
        ("coffee drink", "mocha", order["text"]),
    ]


def test_folder_without_tasks_raises(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"none of the folders sqqa, slot_filling, coreasoning with a metadata\.jsonl"
    ):
        read_untrained(tmp_path)


@pytest.mark.parametrize(("name", "row"), [("slot_filling", SLOTS), ("sqqa", QUERY), ("coreasoning", SOUND)])
def test_row_that_lacks_a_field_raises(name: str, row: dict[str, Any], tmp_path: Path) -> None:
    missing = {"slot_filling": "slot", "sqqa": "answer", "coreasoning": "background"}[name]
    tasks = make_tasks(tmp_path, **{name: {key: value for key, value in row.items() if key != missing}})
    with pytest.raises(ValueError, match=f"0.opus lacks {missing}, which .* needs; add it"):
        read_untrained(tasks)
