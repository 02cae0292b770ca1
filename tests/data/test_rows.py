"""Rows from manifests, annotation files of the research code, and `datasets`."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import soundfile
from conftest import SAMPLING_RATE, make_clip
from workspace import write_jsonl

from modeling_salmonn.data import rows as manifests
from modeling_salmonn.data.rows import load_rows, load_stream, normalise_row
from modeling_salmonn.data.sources import DataSource, parse_sources
from modeling_salmonn.data.tables import leave_undecoded, read_manifest


ROWS = [
    {"path": "a.wav", "text": "hello", "task": "asr"},
    {"path": "b.wav", "text": "two", "task": "audio_qa", "Q": "How many?", "expand_wav": ["c.wav", "/abs/d.wav"]},
]


def source(path: Path, **options: Any) -> DataSource:
    return DataSource(str(path), **options)


@pytest.mark.parametrize("form", ["annotation", "list", "jsonl"])
def test_rows_are_read_in_every_form(form: str, tmp_path: Path) -> None:
    file = tmp_path / ("rows.jsonl" if form == "jsonl" else "rows.json")
    if form == "jsonl":
        write_jsonl(file, ROWS)
    else:
        file.write_text(json.dumps(ROWS if form == "list" else {"annotation": ROWS}))
    rows = load_rows([source(file)])
    assert rows[0] == {"path": f"{tmp_path}/a.wav", "text": "hello", "task": "asr"}
    assert rows[1] == ROWS[1] | {"path": f"{tmp_path}/b.wav", "expand_wav": [f"{tmp_path}/c.wav", "/abs/d.wav"]}


def test_paths_may_start_from_another_folder(tmp_path: Path) -> None:
    rows = load_rows(parse_sources(str(write_jsonl(tmp_path / "rows.jsonl", ROWS)), audio_root="/clips"))
    assert rows[0]["path"] == "/clips/a.wav"


def test_columns_and_task_of_the_source_fill_in(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"path": "a.wav", "words": "hello"}])
    rows = load_rows(parse_sources({"path": str(file), "columns": {"text": "words"}, "task": "asr"}))
    assert rows[0] == {"path": f"{tmp_path}/a.wav", "text": "hello", "task": "asr"}
    assert rows.column("task") == ["asr"]
    assert rows.column("text") == ["hello"]


def test_named_column_wins_over_one_of_our_name(tmp_path: Path) -> None:
    row = {"path": "a.wav", "words": "hello", "text": "HELLO!", "task": "asr"}
    for order in (list(row), list(row)[::-1]):
        file = write_jsonl(tmp_path / "rows.jsonl", [{name: row[name] for name in order}])
        rows = load_rows(parse_sources({"path": str(file), "columns": {"text": "words", "alignment_text": "words"}}))
        expected = {"path": f"{tmp_path}/a.wav", "text": "hello", "alignment_text": "hello", "task": "asr"}
        assert rows[0] == expected
        assert {name: rows.column(name) for name in expected} == {
            name: [value] for name, value in (expected | {"path": "a.wav"}).items()
        }


def test_home_folder_and_single_names_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rows.csv").write_text("path,text,task,expand_wav\na.wav,hello,asr,b.wav\n")
    rows = load_rows(parse_sources("~/rows.csv"))
    assert rows[0]["path"] == f"{tmp_path}/a.wav"
    assert rows[0]["expand_wav"] == [f"{tmp_path}/b.wav"]


def test_sources_are_one_after_the_other(tmp_path: Path) -> None:
    first = write_jsonl(tmp_path / "first.jsonl", ROWS)
    second = write_jsonl(tmp_path / "second.jsonl", [{"path": "e.wav", "text": "five", "seconds": 2.5}])
    rows = load_rows([source(first), source(second, task="asr")])
    assert [row["text"] for row in rows] == ["hello", "two", "five"]
    assert [row["text"] for row in rows[1:]] == ["two", "five"]
    assert rows[-1]["text"] == "five"
    assert rows.column("task") == ["asr", "audio_qa", "asr"]
    assert rows.seconds() == [None, None, 2.5]
    assert [row["text"] for row in rows.select([True, False, True])] == ["hello", "five"]
    with pytest.raises(IndexError, match="no row 3 among 3"):
        rows[3]


def test_long_rows_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [ROWS[0] | {"duration": seconds} for seconds in (1.0, 200.0)])
    assert len(load_rows([source(file)], max_seconds=180)) == 1
    assert "Leaving out 1 rows longer than 180 s." in caplog.text


def test_rows_are_measured_by_their_clips_where_no_column_tells(
    wav_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clip = str(wav_file)
    rows = [
        {"path": clip},
        {"path": clip, "expand_wav": [clip]},
        {"path": "/none.wav"},
        {"path": clip, "seconds": 9.0},
    ]
    named = [row | {"text": str(index), "task": "asr"} for index, row in enumerate(rows)]
    (tmp_path / "rows.json").write_text(json.dumps({"annotation": named}))
    kept = load_rows([source(tmp_path / "rows.json")], max_seconds=2.0)
    assert [row["text"] for row in kept] == ["0", "2"]  # what cannot be measured is reported when it is read
    assert kept.seconds() == [1.5, None]
    assert "Leaving out 2 rows longer than 2 s." in caplog.text


def test_text_may_hold_line_separators(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"text": "a\u2028b"}, ensure_ascii=False) + "\n\n", encoding="utf-8")
    assert read_manifest(file) == [{"text": "a\u2028b"}]


def read(given: DataSource) -> list[dict[str, Any]]:
    rows = list(load_stream(given, seed=0, epoch=0)) if given.streaming else list(load_rows([given]))
    return sorted(rows, key=lambda row: row["text"])


@pytest.fixture(scope="module")
def audio_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audiofolder")
    for index in range(3):
        soundfile.write(folder / f"{index}.wav", make_clip(0.5, seed=index), SAMPLING_RATE)
    rows = [{"file_name": f"{index}.wav", "text": f"row {index}", "kind": "asr"} for index in range(3)]
    write_jsonl(folder / "metadata.jsonl", rows)
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_audio_folder_is_read(
    streaming: bool, audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    rows = read(source(audio_folder, columns={"task": "kind"}, streaming=streaming))
    assert rows == [{"path": f"{audio_folder}/{n}.wav", "text": f"row {n}", "task": "asr"} for n in range(3)]


def test_split_of_an_audio_folder_is_read(audio_folder: Path) -> None:
    given = source(audio_folder.parent, split=audio_folder.name, columns={"task": "kind"})
    assert len(load_rows([given])) == 3


@pytest.mark.parametrize("streaming", [False, True])
def test_audio_within_a_table_is_not_decoded(streaming: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    audio = {"bytes": b"not to be decoded", "path": "a.wav"}
    table = datasets.Dataset.from_list([{"audio": audio, "text": "hello", "task": "asr"}])
    table.cast_column("audio", datasets.Audio(decode=False)).to_parquet(tmp_path / "rows.parquet")
    (row,) = read(source(tmp_path / "rows.parquet", streaming=streaming))
    assert row == {"path": audio, "text": "hello", "task": "asr"}


def test_audio_folder_as_the_hub_has_them_is_streamed(audio_folder: Path, own_caches: None) -> None:
    builder: dict[str, Any] = {"path": "audiofolder", "data_dir": str(audio_folder), "split": "train"}
    table = leave_undecoded(datasets.load_dataset(**builder, streaming=True))
    rows = sorted(table.shuffle(seed=0, buffer_size=2), key=lambda row: row["text"])
    assert [row["text"] for row in rows] == ["row 0", "row 1", "row 2"]
    for index, row in enumerate(rows):
        file = audio_folder / f"{index}.wav"
        assert normalise_row(row, DataSource("lab/clips"))["path"] == {"bytes": file.read_bytes(), "path": str(file)}


def test_length_of_audio_within_a_table_is_known(
    wav_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    audio = {"bytes": wav_file.read_bytes(), "path": None}
    rows = [{"audio": audio, "text": "hello", "task": "asr", "seconds": seconds} for seconds in (None, 4.0)]
    table = datasets.Dataset.from_list(rows).cast_column("audio", datasets.Audio(decode=False))
    table.to_parquet(tmp_path / "rows.parquet")
    assert load_rows([source(tmp_path / "rows.parquet")]).seconds() == [1.5, 4.0]


def test_audio_of_a_table_that_names_a_file_is_its_path() -> None:
    row = {"path": {"bytes": None, "path": "a.wav"}, "text": "hello", "task": "asr"}
    assert normalise_row(row, DataSource("rows.parquet", audio_root="/clips"))["path"] == "/clips/a.wav"


def test_stream_is_shuffled_anew_in_each_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    rows = [{"path": "a.wav", "text": str(index), "task": "asr"} for index in range(20)]
    given = source(write_jsonl(tmp_path / "rows.jsonl", rows), streaming=True)
    orders = [[row["text"] for row in load_stream(given, seed=0, epoch=epoch)] for epoch in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])


def test_weight_of_a_streamed_row_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    one, two = (write_jsonl(tmp_path / f"{weight}.jsonl", [ROWS[0] | {"weight": weight}]) for weight in (1.0, 2.0))
    assert len(read(source(one, streaming=True))) == 1
    with pytest.raises(ValueError, match=r"has the weight 2\.0, but streamed rows come once each"):
        read(source(two, streaming=True))


def test_streaming_source_raises_where_all_rows_are_needed() -> None:
    with pytest.raises(ValueError, match=r"rows\.jsonl cannot be streamed here"):
        load_rows([DataSource("rows.jsonl", streaming=True)])


def test_parquet_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.Dataset.from_list(ROWS[:1]).to_parquet(tmp_path / "rows.parquet")
    assert load_rows([source(tmp_path / "rows.parquet", audio_root="/clips")])[0]["path"] == "/clips/a.wav"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", '{"text": "a"}\n{', "line 2 of .*rows.jsonl is not JSON"),
        ("rows.jsonl", "[1]", "Row 0 of .* is a list; each row needs to be an object"),
        ("rows.json", '{"rows": []}', "needs to hold a list of rows"),
        ("rows.json", "[]", "has no rows"),
        ("rows.json", '[{"text": "a", "path": "b"}]', r"lacks \['task'\]; name them in the source's columns"),
        (
            "rows.json",
            '[{"text": "a", "meta": 1},\n{"text": "b", "meta": "b"}]',
            "has a column of several types .'meta' is text in line 2, and a number in line 1.; each column needs one",
        ),
        ("rows.jsonl", "\n\n", "has no rows"),
        ("rows.jsonl", "", "has no rows"),
        ("rows.json", "", "needs to hold a list of rows"),
        ("rows.jsonl", '{"text": "a"}\n\n{"text": "b', r"line 3 of .*rows\.jsonl is not JSON .*cut off"),
        ("rows.jsonl", '{"text": "a", "text": "b"}', r"line 1 of .*rows\.jsonl is not JSON .*'text' is given twice"),
        ("rows.jsonl", "[" * 10**6, r"line 1 of .*rows\.jsonl is not JSON .*levels of nesting"),
    ],
    ids=range(12),
)
def test_unusable_manifest_raises(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_rows([source(tmp_path / name)])


def test_marks_of_bytes_and_line_ends_of_windows_are_understood(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row) + "\r\n" for row in ROWS)
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    (tmp_path / "rows.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(ROWS, indent=2).replace("\n", "\r\n").encode())
    assert [len(load_rows([source(tmp_path / name)])) for name in ("rows.jsonl", "rows.json")] == [2, 2]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv"])
def test_manifest_in_another_encoding_is_told_with_its_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\n\n\xe9t\xe9\n")
    with pytest.raises(ValueError, match=rf"Line 3 of .*{name} is not UTF-8 \(byte 0xe9\)"):
        load_rows([source(tmp_path / name)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,text,task\na.wav,hello\n", "Line 2 of .* has not as many fields as the first line has columns, 3;"),
        ("path,text,task\na.wav,hello, you,asr\n", "Line 2 of .* has not as many fields as the first line has"),
        ("path,text,text,task\n", r"Line 1 of .* names \['text'\] more than once; name each column once"),
        ("", "Line 1 of .* names no columns"),
        ('path,text,task\na.wav,"hello,asr\n', "Line 2 of .* is not CSV"),
        (
            "path,text,task,weight\na.wav,a,asr,b\n",
            r"Line 2 of .*: weight is 'b' \(text\), but it needs a",
        ),
        ("path,text,task,weight\na.wav,a,asr,1\nb.wav,b,asr,-1\n", r"Line 3 of .*: weight is -1\.0 .* not negative"),
        ("path,text,task\na.wav,,asr\n", r"A row of .*rows\.csv has text=None: .*Give each row a text.*line 2"),
    ],
    ids=range(8),
)
def test_csv_with_a_mistake_raises(
    content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "rows.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_rows([source(tmp_path / "rows.csv")])


@pytest.mark.parametrize("streaming", [False, True])
def test_damaged_table_is_named(streaming: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    file = tmp_path / "rows.parquet"
    datasets.Dataset.from_list(ROWS[:1] * 100).to_parquet(file)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"rows\.parquet cannot be read .*[Pp]arquet"):
        read(source(file, streaming=streaming))


def test_stream_with_a_value_that_cannot_be_used_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    file = write_jsonl(tmp_path / "rows.jsonl", [ROWS[0] | {"text": "x" * 2_000_000}])
    with pytest.raises(ValueError, match=r"A row of .*rows\.jsonl: text is 'x.* at most 1,000,000 characters"):
        read(source(file, streaming=True))
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": ')
    with pytest.raises(ValueError, match=r"rows\.jsonl cannot be read"):
        read(source(file, streaming=True))


def test_absurd_length_in_a_header_counts_as_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "joined_seconds", lambda clips: float(2**63) / SAMPLING_RATE)
    file = write_jsonl(tmp_path / "rows.jsonl", [ROWS[0], ROWS[0] | {"seconds": 3}])
    assert load_rows([source(file)], max_seconds=10).seconds() == [None, 3.0]


@pytest.mark.parametrize("path", ["/none/rows.jsonl", "/none/rows.json"])
def test_missing_manifest_raises(path: str) -> None:
    with pytest.raises(ValueError, match=f"There is no manifest {path}"):
        load_rows([DataSource(path)])


def test_folder_without_metadata_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no audio folder: it has none of"):
        load_rows([source(tmp_path)])


def test_file_of_another_form_raises(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").touch()
    with pytest.raises(ValueError, match=r"is none of \['.csv'"):
        load_rows([source(tmp_path / "rows.txt")])


def test_missing_folder_raises() -> None:
    with pytest.raises(ValueError, match="There is no data at /none/folder"):
        load_rows([DataSource("/none/folder")])


@pytest.mark.parametrize("streaming", [False, True])
def test_texts_of_a_csv_stay_as_they_are(streaming: bool, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('path,text,task,seconds\na.wav,12,asr,1.5\nb.wav,"null, or\nnot",asr,\n')
    first, second = read(source(tmp_path / "rows.csv", streaming=streaming))
    assert first == {"path": f"{tmp_path}/a.wav", "text": "12", "task": "asr", "seconds": 1.5}
    assert second == {"path": f"{tmp_path}/b.wav", "text": "null, or\nnot", "task": "asr"}


def test_number_of_a_csv_may_have_another_name(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("path,text,task,length\na.wav,hello,asr,1.5\n")
    assert load_rows([source(tmp_path / "rows.csv", columns={"seconds": "length"})]).seconds() == [1.5]


@pytest.mark.parametrize("streaming", [False, True])
def test_line_of_a_csv_that_is_cut_off_raises(streaming: bool, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("path,text,task\na.wav,hello,asr\nb.wav,he")
    with pytest.raises(ValueError, match=r"Line 3 of .*rows\.csv has not as many fields"):
        read(source(tmp_path / "rows.csv", streaming=streaming))


def test_rows_need_what_their_reader_needs(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"path": "a.wav", "task": "story"}, {"path": "b.wav", "text": "b"}])
    assert [row.get("task") for row in load_rows(str(file), needs=("path",))] == ["story", None]
    for name, line in (("task", 2), ("text", 1)):
        with pytest.raises(ValueError, match=rf"has {name}=None: .*Give each row a {name}.*\(line {line}\)"):
            load_rows(str(file), needs=("path", name))
    assert len(load_rows({"path": str(file), "task": "asr"}, needs=("path", "task"))) == 2


def test_row_knows_its_place(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n" + "\n\n".join(json.dumps(row) for row in ROWS))
    rows = load_rows([source(file), source(file)])
    assert [rows.place(index) for index in range(4)] == [f"line {line} of {file}" for line in (2, 4, 2, 4)]
    assert rows.select([False, True, False, False]).place(0) == f"line 4 of {file}"


def test_references_may_be_texts_or_lists(tmp_path: Path) -> None:
    rows = [ROWS[0] | {"references": references} for references in ("one", ["two", "three"], None)]
    found = load_rows([source(write_jsonl(tmp_path / "rows.jsonl", rows))])
    assert [row.get("references") for row in found] == [["one"], ["two", "three"], None]


@pytest.mark.parametrize("name", ["text", "task"])
def test_table_with_an_empty_field_raises(name: str, tmp_path: Path) -> None:
    rows = [{"path": f"{index}.wav", "text": "hello", "task": "asr", "seconds": 1.0} for index in range(3)]
    rows[1][name] = None
    message = rf"A row of .*rows\.jsonl has {name}=None: .*1\.wav.*Give each row a {name}"
    with pytest.raises(ValueError, match=message):
        load_rows([source(write_jsonl(tmp_path / "rows.jsonl", rows))])


def test_row_without_text_does_not_show_its_audio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    audio = {"path": "a.wav", "bytes": b"x" * 10_000}
    rows = [{"path": audio, "task": "asr", "text": text} for text in ("a", None)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"'path': 'a\.wav#\w+'.*Give each row a text") as raised:
            read(source(tmp_path / "rows.parquet", streaming=streaming))
        assert len(str(raised.value)) < 500


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (7, "path of the data source 7 is 7, but it needs text"),
        (None, "path of the data source None is None, but it needs text"),
        ({"path": ""}, "path of the data source '' is empty"),
        (
            {"path": "a.json", "columns": ["text"]},
            "columns of the data source .* it needs mapping of text",
        ),
        (
            {"path": "a.json", "columns": {"text": 3}},
            "columns of the data source .*text is 3, but it needs text",
        ),
        ({"path": "a.json", "streaming": "yes"}, "streaming of the data source 'a.json' is 'yes', but it needs bool"),
        ({"path": "a.json", "task": 3}, "task of the data source .* is 3, but it needs text or null"),
        ({"path": "a.json", "split": None}, "split of the data source .* is None, but it needs text"),
    ],
)
def test_source_field_of_another_type_raises(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_sources(value)


@pytest.mark.parametrize("value", [{"task": "asr"}, {"path": "a.json", "sampling": 3}])
def test_unknown_source_field_raises(value: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs 'path', and knows nothing but"):
        parse_sources(value)
