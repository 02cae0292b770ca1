"""Files of JSON and YAML with mistakes, and with traps: each is told with its line, and none takes long."""

from pathlib import Path

import pytest

from modeling_salmonn.data.text_files import (
    parse_json,
    parse_json_rows,
    parse_yaml,
    read_json_object,
    read_text,
    read_yaml_mapping,
    shown,
)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 10)
)
MERGED = "a0: &a0 {x: 1}\n" + "".join(
    f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 10)}]}}\n" for level in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 10**7, "more than 50 levels of nesting"),
        ('{"a": ' * 10**6, "more than 50 levels of nesting"),
        ("[" * 60 + "]" * 60, "more than 50 levels of nesting"),
        ('{"a": NaN}', "NaN is no finite number"),
        ('{"a": -Infinity}', "-Infinity is no finite number"),
        ('{"a": 1e999}', "1e999 is no finite number"),
        ('{"a": 9223372036854775808}', "the number 9223372036854775808 has more than 64 bits"),
        ('{"a": ' + "9" * 5000 + "}", "the number 9{24} has more than 64 bits"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' is given twice"),
        ('{"a": "b', "Unterminated string.*; it seems to be cut off"),
        ('{"a": ', "Expecting value; it seems to be cut off"),
        ("{} {}", "there is more behind its end"),
        ("", "Expecting value"),
    ],
    ids=range(13),
)
def test_json_with_a_mistake_or_a_trap_raises(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^line 3 of rows\.jsonl is not JSON \(.*{message}"):
        parse_json(text, "line 3 of rows.jsonl")


def test_records_may_have_numbers_that_are_not_finite(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text('{"losses": [NaN, Infinity]}')
    assert read_json_object(tmp_path / "record.json", "delete it")["losses"][1] == float("inf")


@pytest.mark.parametrize("text", ['[{"a": 1},\n\n {"a": [2]}\n]', '{"b": {"c": [1]},\n"annotation":\n[{"a": 1}]\n}\n'])
def test_rows_know_their_lines(text: str) -> None:
    rows = list(parse_json_rows(text, "rows.json"))
    lines = text.split("\n")
    assert rows
    assert all('{"a"' in lines[line - 1] for line, _ in rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1},\n{"a": 1, "a": 2}]', r"line 2 of rows\.json is not JSON \(the key 'a' is given twice"),
        ('[{"a": 1}\n{"a": 2}]', r"line 2 of rows\.json is not JSON \(Expecting ',' delimiter"),
        ('[\n{"a": 1},\n]', r"line 3 of rows\.json is not JSON \(a comma behind the last entry"),
        ('[\n{"a": 1},', r"line 2 of rows\.json is not JSON \(Expecting value; it seems to be cut off"),
        ('[\n{"a": 1}\n]\n]', r"is not JSON \(there is more behind its end"),
        ("", "needs to hold a list of rows"),
        ('[{"a": 1}, {"a": ', r"line 1 of rows\.json is not JSON \(Expecting value; it seems to be cut off"),
        ('"annotation"', "needs to hold a list of rows"),
        ('{"annotation": {"a": 1}}', "needs to hold a list of rows"),
    ],
)
def test_rows_with_a_mistake_raise(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(parse_json_rows(text, "rows.json"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, r"of x\.yaml has more than .*aliases that stand for more than 100,000 values"),
        (MERGED, r"of x\.yaml has more than .*aliases that stand for more than 100,000 values"),
        ("a: &a [*a]", r"Line 1 of x\.yaml has more than 50 levels of nesting"),
        ("a:\n  " + "[" * 10**4, r"Line 2 of x\.yaml has more than 50 levels of nesting"),
        ("- " * 1000 + "a", r"x\.yaml.*nest"),
        ("- " * 70 + "a", r"Line 1 of x\.yaml has more than 50 levels of nesting"),
        ("a: '" + "x" * 20_000_000 + "'", r"x\.yaml has 20,000,005 characters"),
        ("a: 1\nb: 2\na: 3", r"Line 3 of x\.yaml gives the key 'a' again, after line 1"),
        ("a:\n  b: 1\n  b: 2", r"Line 3 of x\.yaml gives the key 'b' again, after line 2"),
        ("a: 1\n\tb: 2", r"line 2 of x\.yaml is not YAML: .*indent with blanks, not with tabs"),
        ("a: [1,\nb: 2", r"of x\.yaml is not YAML"),
        ("a: *b", r"line 1 of x\.yaml is not YAML: found undefined alias"),
        ("a: !!python/object:os.system x", r"line 1 of x\.yaml is not YAML: could not determine a constructor"),
        ("? [1, 2]\n: 3", r"Line 1 of x\.yaml has a key that is no word"),
        ("a: 2024-13-45", r"x\.yaml has a value that cannot be read"),
        ("a: !!int ''", r"x\.yaml has a value that cannot be read"),
        ("a: !!bool maybe", r"x\.yaml has a value that cannot be read"),
        ("a: \x07", r"x\.yaml is not YAML: unacceptable character"),
        ("a: 1\n---\nb: 2", r"line 2 of x\.yaml is not YAML"),
    ],
    ids=range(19),
)
def test_yaml_with_a_mistake_or_a_trap_raises(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_yaml(text, "x.yaml")


def test_yaml_may_have_aliases_and_tells_lines_of_keys(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(b"\xef\xbb\xbf# a comment\r\na: &a [1, 2]\r\n\r\nb: *a\r\n")
    assert read_yaml_mapping(file, "stage") == ({"a": [1, 2], "b": [1, 2]}, {"a": 2, "b": 4})


@pytest.mark.parametrize(
    ("text", "kind"), [("", "nothing"), ("# nothing", "nothing"), ("- 1", "a list"), ("a", "text")]
)
def test_yaml_that_is_no_mapping_raises(text: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"x\.yaml holds {kind}; it needs to map keys to values"):
        read_yaml_mapping(tmp_path / "x.yaml", "stage")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\nb: \xe9t\xe9\n", r"Line 2 of .*x\.txt is not UTF-8 \(byte 0xe9\); save the file in UTF-8"),
        ("a: 1".encode("utf-16"), r"x\.txt is in UTF-16; save it in UTF-8"),
    ],
)
def test_text_in_another_encoding_raises(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_text(tmp_path / "x.txt", "file")


def test_what_is_no_file_raises(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path, "is a folder"),
        (Path("/dev/zero"), "is a device"),
        (tmp_path / "a", "There is no"),
    ):
        with pytest.raises(ValueError, match=message):
            read_text(path, "manifest")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1 of .*record.json is not JSON .*; delete it to begin anew"),
        ('{"a": 1,\n"b"', r"line 2 of .*record\.json is not JSON .*cut off.*; delete it to begin anew"),
        ("[1]", "holds a list, but it needs an object with names and values; delete it to begin anew"),
    ],
)
def test_damaged_record_tells_how_to_mend_it(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_json_object(tmp_path / "record.json", "delete it to begin anew")


def test_long_values_are_cut_in_messages() -> None:
    assert len(shown("x" * 10**7)) < 100
    assert len(shown([["x" * 1000] * 1000] * 1000)) <= 300
    assert shown({"a": 1}) == "{'a': 1}"


def test_enormous_file_raises_unread(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse: it takes no room
    with pytest.raises(ValueError, match=r"rows\.jsonl has 1,099,511,627,776 bytes, more than .*; is it a manifest"):
        read_text(path, "manifest")
