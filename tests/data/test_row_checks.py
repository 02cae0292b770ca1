"""Values that rows cannot have: each is told with its file, its line, and what is needed."""

from pathlib import Path
from typing import Any

import pytest
from workspace import write_jsonl

from modeling_salmonn.data.rows import load_rows
from modeling_salmonn.data.sources import DataSource


ROW = {"path": "a.wav", "text": "hello", "task": "asr"}


def source(path: Path, **options: Any) -> DataSource:
    return DataSource(str(path), **options)


NEEDS_NUMBER = "it needs a finite number that is not negative"


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("text", 1, r"text is 1 \(a number\), but it needs text"),
        ("text", ["a"], r"text is \['a'\] \(a list\), but it needs text"),
        ("text", "x" * 20_000_000, "but it needs text of at most 1,000,000 characters, and has 20,000,000"),
        ("text", "\ud800", "but it has half of a surrogate pair"),
        ("task", 3, r"task is 3 \(a number\), but it needs text"),
        ("prompt", {}, r"prompt is \{\} \(a mapping\), but it needs text"),
        ("Q", ["a"], r"Q is \['a'\] \(a list\), but it needs text"),
        ("language", "x" * 2_000_000, "it needs text of at most 1,000,000 characters"),
        ("alignment_words", ["a"], r"alignment_words is \['a'\] \(a list\), but it needs text"),
        ("path", 7, r"path is 7 \(a number\), but it needs the path of a clip"),
        ("path", "", "path is '' .text., but it needs the path of a clip; leave it out, or null, for text alone"),
        ("path", "a\0b", "it needs the path of a clip"),
        ("path", ["a.wav", "b.wav"], "it needs one clip; name further clips, to be joined to it, in expand_wav"),
        ("audio", ["a.wav"], "audio is .* it needs one clip"),
        ("expand_wav", 3, "expand_wav is 3 .* it needs a list of paths"),
        ("expand_wav", ["a.wav", 3], "expand_wav is .* it needs the path of a clip"),
        ("weight", -1, rf"weight is -1 \(a number\), but {NEEDS_NUMBER}"),
        ("weight", "2", rf"weight is '2' \(text\), but {NEEDS_NUMBER}"),
        ("weight", True, rf"weight is True \(true or false\), but {NEEDS_NUMBER}"),
        ("seconds", -2.0, f"seconds is -2.0 .*{NEEDS_NUMBER}, the length in seconds"),
        ("seconds", "00:12", f"seconds is '00:12' .*{NEEDS_NUMBER}, the length in seconds"),
        ("duration", 2**62, "duration is 4611686018427387904 .* of a day at most: no frames, samples or milli"),
        ("seconds", 100_000, "seconds is 100000 .* it needs the length in seconds, of a day at most"),
        ("speaker", ["a"], "speaker is .* it needs text"),
    ],
    ids=range(24),
)
def test_value_that_cannot_be_used_is_told_with_its_line(name: str, value: Any, problem: str, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [ROW, ROW | {name: value}])
    with pytest.raises(ValueError, match=rf"^Line 2 of .*rows\.jsonl: .*{problem}"):
        load_rows([source(file)])


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "9223372036854775808", "9" * 5000])
@pytest.mark.parametrize("name", ["weight", "seconds", "other"])
def test_number_that_does_not_fit_is_told_with_its_line(name: str, value: str, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(f'[\n\n{{"text": "a", "task": "b", "{name}": {value}}}]')
    with pytest.raises(ValueError, match=r"line 3 of .*rows\.json is not JSON \((the number|-?Infinity|NaN|1e999)"):
        load_rows([source(tmp_path / "rows.json")])


def test_named_column_is_checked_and_the_one_of_our_name_is_not(tmp_path: Path) -> None:
    rows = [{"path": "a.wav", "words": "hello", "text": 7, "task": 3, "kind": "asr"}]
    given = source(write_jsonl(tmp_path / "rows.jsonl", rows), columns={"text": "words", "task": "kind"})
    assert load_rows([given])[0]["text"] == "hello"
    rows[0]["words"] = 8
    write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ValueError, match=r"Line 1 of .*: words is 8 \(a number\), but it needs text"):
        load_rows([given])
