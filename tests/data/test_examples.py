"""Examples: instructions, joined and mixed clips, pairs of speakers, replacements for bad clips."""

import random
import re
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import SAMPLING_RATE, make_clip
from workspace import CLIPS, Workspace, make_workspace, write_jsonl

from modeling_salmonn import SalmonnProcessor
from modeling_salmonn.data.clips import BadClips, CachedClips, ClipReader
from modeling_salmonn.data.examples import ExampleMaker, ExampleSet, ExampleStream, MadeOnTheFly
from modeling_salmonn.data.prompts import load_prompts
from modeling_salmonn.data.rows import load_rows
from modeling_salmonn.data.sources import DataSource
from modeling_salmonn.processing.audio_segments_salmonn import AudioLayout


PROMPTS = load_prompts()
LAYOUT = AudioLayout.from_seconds(30, 0.1, 0.1, num_query_tokens=1, trim_audio_tokens=True)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("examples"))


@pytest.fixture
def maker(bucket_processor: SalmonnProcessor) -> ExampleMaker:
    return ExampleMaker(PROMPTS, ClipReader(bucket_processor.feature_extractor, BadClips(5)))


def examples(workspace: Workspace, maker: ExampleMaker, **options: Any) -> ExampleSet:
    return ExampleSet(load_rows([DataSource(str(workspace.manifest))]), maker, **options)


def instruction(maker: ExampleMaker, **row: Any) -> str:
    return maker.instruction({"text": "answer", "task": "asr"} | row, random.Random(0))


def test_example_has_what_the_collator_needs(workspace: Workspace, maker: ExampleMaker) -> None:
    example = examples(workspace, maker)[1]
    assert example["instruction"] in PROMPTS["asr"]
    assert (example["answer"], example["task"]) == ("text number 1", "asr")
    assert example["path"] == str(workspace.folder / "clip1.wav")
    written, _ = soundfile.read(workspace.folder / "clip1.wav", dtype="float32")
    assert np.array_equal(example["audio"], written)


def test_every_instruction_of_a_task_is_drawn(workspace: Workspace, maker: ExampleMaker) -> None:
    rows = examples(workspace, maker)
    assert {rows[1, draw]["instruction"] for draw in range(100)} == set(PROMPTS["asr"])


def test_instruction_of_the_row_wins(maker: ExampleMaker) -> None:
    assert instruction(maker, prompt="Just listen.") == "Just listen."
    assert instruction(maker, task="untold", prompt="Say it in {language}.", language="Welsh") == "Say it in Welsh."


def test_q_fills_the_field_of_the_instruction(maker: ExampleMaker) -> None:
    assert "How many dogs?" in instruction(maker, task="audio_qa", Q="How many dogs?")
    assert "city, date" in instruction(maker, task="slot_filling", Q="city, date")


def test_columns_fill_fields_before_q(maker: ExampleMaker) -> None:
    assert "Welsh" in instruction(maker, task="translation", language="Welsh", Q="German")


def test_missing_field_raises(maker: ExampleMaker) -> None:
    with pytest.raises(ValueError, match="needs the field 'language'"):
        instruction(maker, task="translation")


def test_more_clips_are_joined(workspace: Workspace, maker: ExampleMaker) -> None:
    paths = [str(workspace.folder / f"clip{index}.wav") for index in range(3)]
    joined = maker.read({"path": paths[0], "expand_wav": paths[1:]})
    assert len(joined) == round((0.5 + 0.6 + 0.7 + 2 * 0.1) * SAMPLING_RATE)


def test_row_without_audio_is_text_alone(maker: ExampleMaker) -> None:
    assert maker.make({"text": "answer", "task": "story"}, random.Random(0))["audio"] is None


def test_choices_follow_from_the_draw(workspace: Workspace, maker: ExampleMaker) -> None:
    rows = examples(workspace, maker, made=MadeOnTheFly(overlap=1), seed=5)
    again = examples(workspace, maker, made=MadeOnTheFly(overlap=1), seed=5)
    assert np.array_equal(rows[CLIPS, 7]["audio"], again[CLIPS, 7]["audio"])
    assert rows[CLIPS, 7]["answer"] == again[CLIPS, 7]["answer"]
    assert len({rows[CLIPS, draw]["answer"] for draw in range(20)}) > 5


def test_overlapped_speech_is_mixed_of_two_rows(workspace: Workspace, maker: ExampleMaker) -> None:
    example = examples(workspace, maker, made=MadeOnTheFly(overlap=3))[CLIPS]
    assert example["task"] == "overlapped_speech"
    assert example["instruction"] in PROMPTS["overlapped_speech"]
    first, second = (int(number) for number in re.findall(r"\d+", example["answer"]))
    assert first != second
    assert first % 2 == second % 2 == 1  # of the task asr alone
    seconds = len(example["audio"]) / SAMPLING_RATE
    assert seconds < (0.5 + 0.1 * first) + (0.5 + 0.1 * second)


def test_rows_of_text_alone_are_neither_mixed_nor_paired(
    workspace: Workspace, maker: ExampleMaker, tmp_path: Path
) -> None:
    rows = [{"text": f"text number {index}", "task": "asr", "speaker": "a"} for index in range(20)]
    for index in (1, 3, 5):
        path = str(workspace.folder / f"clip{index}.wav")
        rows.append({"path": path, "text": "heard", "task": "asr", "speaker": "b" if index == 1 else "a"})
    data = load_rows(str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    made = ExampleSet(data, maker, MadeOnTheFly(overlap=1, verification=1))
    assert {made[len(rows), draw]["answer"] for draw in range(20)} == {"heard\nheard"}
    assert made.speakers == {"b": [20], "a": [21, 22]}
    assert {made[len(rows) + 1, draw]["answer"] for draw in range(20)} == {"Yes", "No"}


def test_speaker_pairs_are_told_apart(workspace: Workspace, maker: ExampleMaker) -> None:
    rows = examples(workspace, maker, made=MadeOnTheFly(verification=1))
    speakers = {round(SAMPLING_RATE * (0.5 + 0.1 * index)): index % 3 for index in range(CLIPS)}
    answers = Counter()
    for draw in range(60):
        example = rows[CLIPS, draw]
        silence = int(0.1 * SAMPLING_RATE)
        pairs = [
            (own, other)
            for first, own in speakers.items()
            for second, other in speakers.items()
            if first + silence + second == len(example["audio"])
            and not example["audio"][first : first + silence].any()
        ]
        ((own, other),) = pairs
        assert example["answer"] == ("Yes" if own == other else "No")
        answers[example["answer"]] += 1
    assert min(answers.values()) > 15


def test_speakers_may_be_numbers(workspace: Workspace, maker: ExampleMaker, tmp_path: Path) -> None:
    rows = [
        {"path": str(workspace.folder / f"clip{clip}.wav"), "text": "x", "task": "asr", "speaker": clip // 2}
        for clip in range(6)
    ]
    file = write_jsonl(tmp_path / "rows.jsonl", [*rows, rows[0] | {"speaker": None}])
    pairs = ExampleSet(load_rows(str(file)), maker, MadeOnTheFly(verification=1))
    assert pairs.speakers == {0: [0, 1], 1: [2, 3], 2: [4, 5]}


def test_speaker_pairs_are_never_one_clip_twice(workspace: Workspace, maker: ExampleMaker, tmp_path: Path) -> None:
    clips = [("a", 0), ("a", 1), ("b", 2)]
    rows = [
        {"path": str(workspace.folder / f"clip{clip}.wav"), "text": "x", "task": task, "speaker": speaker}
        for task in ("asr", "gender_recognition", "phone_recognition")
        for speaker, clip in clips
    ]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    pairs = ExampleSet(load_rows([DataSource(str(file))]), maker, MadeOnTheFly(verification=1))
    assert pairs.speakers == {"a": [0, 1], "b": [2]}
    same = [example for draw in range(20) if (example := pairs[len(rows), draw])["answer"] == "Yes"]
    assert {len(example["audio"]) for example in same} == {round((0.5 + 0.6 + 0.1) * SAMPLING_RATE)}
    write_jsonl(file, [row | ({"speaker": ""} if row["path"] == rows[1]["path"] else {}) for row in rows])
    with pytest.raises(ValueError, match="two clips of one; give rows"):
        ExampleSet(load_rows([DataSource(str(file))]), maker, MadeOnTheFly(verification=1))


@pytest.fixture
def broken(workspace: Workspace, tmp_path: Path) -> Path:
    """A manifest whose stories 0 and 2, of 0, 2, 4 and 6, cannot be read."""
    rows = stream_rows(workspace, "story", 8)
    for index, row in enumerate(rows):
        row |= {"text": str(index), "task": "asr" if index % 2 else "story"}
    for index in (0, 2):
        rows[index]["path"] = f"/none/{index}.wav"
    return write_jsonl(tmp_path / "broken.jsonl", rows)


def test_bad_clip_is_replaced_by_one_of_its_task(broken: Path, maker: ExampleMaker) -> None:
    rows = ExampleSet(load_rows([DataSource(str(broken))]), maker)
    answers = [rows[0, draw]["answer"] for draw in range(30)]
    assert set(answers) == {"4", "6"}
    assert maker.reader.bad_clips.names == {"/none/0.wav", "/none/2.wav"}


def test_replacements_are_the_same_in_a_new_run(broken: Path, bucket_processor: SalmonnProcessor) -> None:
    runs = []
    for order in (range(30), reversed(range(30))):  # a resumed run knows other bad clips by then
        reader = ClipReader(bucket_processor.feature_extractor, BadClips(5))
        rows = ExampleSet(load_rows([DataSource(str(broken))]), ExampleMaker(PROMPTS, reader))
        runs.append({draw: (rows[0, draw]["answer"], rows[0, draw]["instruction"]) for draw in order})
    assert runs[0] == runs[1]


def test_bad_partner_of_a_mixture_is_replaced(workspace: Workspace, maker: ExampleMaker, tmp_path: Path) -> None:
    paths = [str(workspace.folder / "clip1.wav"), str(workspace.folder / "clip2.wav"), "/none.wav"]
    rows = [{"path": path, "text": str(index), "task": "asr"} for index, path in enumerate(paths)]
    mixtures = ExampleSet(
        load_rows([DataSource(str(write_jsonl(tmp_path / "rows.jsonl", rows)))]), maker, MadeOnTheFly(overlap=1)
    )
    assert {mixtures[3, draw]["answer"] for draw in range(20)} == {"0\n1", "1\n0"}


def test_nothing_but_bad_clips_raises(maker: ExampleMaker, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"path": "/none.wav", "text": "a", "task": "asr"}])
    with pytest.raises(ValueError, match="No clip of the task 'asr' can be read"):
        ExampleSet(load_rows([DataSource(str(file))]), maker)[0]


def test_sets_by_task_keep_the_order(workspace: Workspace, maker: ExampleMaker) -> None:
    sets = examples(workspace, maker).by_task()
    assert {task: len(rows) for task, rows in sets.items()} == {"audio_caption": 6, "asr": 6}
    assert sets["asr"][0]["answer"] == "text number 1"


def test_lengths_are_of_audio_and_text(workspace: Workspace, maker: ExampleMaker, tmp_path: Path) -> None:
    clip = str(workspace.folder / "clip0.wav")
    rows = [
        {"path": clip, "text": "x" * 40, "task": "asr"},  # 0.5 s, from the header
        {"path": "unknown.wav", "text": "", "task": "asr", "seconds": 20.0},
        {"path": clip, "text": "", "task": "speaker_verification", "expand_wav": [clip]},  # 1.1 s with the pause
    ]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert ExampleSet(load_rows([DataSource(str(file))]), maker).lengths(LAYOUT) == [5 + 10, 200.0, 11.0]


def test_longest_row_that_is_read_can_be_sampled(maker: ExampleMaker, tmp_path: Path) -> None:
    rows = [{"path": "a.wav", "text": "", "task": "asr", "seconds": seconds} for seconds in (86_400, 86_399.999, 1)]
    read = ExampleSet(load_rows([DataSource(str(write_jsonl(tmp_path / "rows.jsonl", rows)))]), maker)
    assert read.lengths(LAYOUT) == [864_000.0, 864_000.0, 10.0]
    rows[1]["seconds"] = 86_401
    with pytest.raises(ValueError, match=r"^Line 2 of .*rows\.jsonl: seconds is 86401 .*, of a day at most"):
        load_rows([DataSource(str(write_jsonl(tmp_path / "rows.jsonl", rows)))])


def test_sampler_draws_rows_and_mixtures(workspace: Workspace, maker: ExampleMaker) -> None:
    rows = examples(workspace, maker, made=MadeOnTheFly(overlap=4), task_weights={"asr": 0.0}, group_lengths=LAYOUT)
    drawn = [row for row, _ in rows.sampler(batch_size=2, seed=0)]
    kinds = Counter(rows.tasks[row] for row in drawn)
    assert kinds == {"audio_caption": 10, "overlapped_speech": 6}


def test_task_without_instructions_raises(maker: ExampleMaker, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"path": "a.wav", "text": "a", "task": "yodelling"}])
    with pytest.raises(ValueError, match=r"no instructions for the tasks \['yodelling'\]"):
        ExampleSet(load_rows([DataSource(str(file))]), maker)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (MadeOnTheFly(overlap=1, overlap_task="story"), "two clips of the task 'story', but the data have 0 of it"),
        (MadeOnTheFly(verification=1), "verification_examples needs clips of two speakers"),
    ],
)
def test_nothing_to_mix_raises(made: MadeOnTheFly, message: str, maker: ExampleMaker, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"path": "a.wav", "text": "a", "task": "asr"}] * 2)
    with pytest.raises(ValueError, match=message):
        ExampleSet(load_rows([DataSource(str(file))]), maker, made)


def test_cached_examples_read_no_audio(workspace: Workspace) -> None:
    bad_clips = BadClips(5)
    maker = ExampleMaker(PROMPTS, CachedClips(bad_clips))
    rows = examples(workspace, maker)
    assert rows[0]["audio"] is None
    assert rows[0]["path"] == str(workspace.folder / "clip0.wav")
    bad_clips.report(str(workspace.folder / "clip0.wav"), "empty")
    assert rows[0]["path"] != str(workspace.folder / "clip0.wav")
    with pytest.raises(ValueError, match="does not hold clips made on the fly"):
        examples(workspace, maker, made=MadeOnTheFly(overlap=1))


def test_joined_clips_are_refused_before_a_cache_is_filled(workspace: Workspace, tmp_path: Path) -> None:
    rows = [row | {"expand_wav": ["b.wav"]} for row in stream_rows(workspace, "asr", 2)]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ValueError, match=r"does not hold joined clips \(expand_wav\)"):
        ExampleSet(load_rows([DataSource(str(file))]), ExampleMaker(PROMPTS, CachedClips(BadClips(5))))


@pytest.mark.parametrize(
    ("given", "complete"),
    [({"language": "German"}, True), ({"Q": "German"}, True), ({"prompt": "Nun?"}, True), ({}, False)],
)
def test_rows_have_the_fields_of_their_instructions(
    given: dict[str, str], complete: bool, workspace: Workspace, maker: ExampleMaker, tmp_path: Path
) -> None:
    rows = stream_rows(workspace, "translation", 2)
    rows[0] |= {"language": "French"}
    file = write_jsonl(tmp_path / "rows.jsonl", [rows[0], rows[1] | given])
    if complete:
        ExampleSet(load_rows([DataSource(str(file))]), maker)
    else:
        message = r"'translation' name \{language\}, which line 2 of .*rows\.jsonl lacks; give it a 'language'"
        with pytest.raises(ValueError, match=message):
            ExampleSet(load_rows([DataSource(str(file))]), maker)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Name {n} things.", "Name 3 things."),
        ("Name {share} of {language}.", "Name 0.5 of 7."),
        ("Do the {task} of {template} with {rng}.", "Do the quiz of a form with dice."),
        ("Say {sentence}.", None),
        ("Say {text}.", "Say hi."),
        ("Is it {sure}?", None),
        ("Is it {empty}?", None),
    ],
)
@pytest.mark.parametrize("own", [True, False], ids=["own prompt", "of the task"])
def test_fields_that_pass_the_check_are_filled_in(
    own: bool,
    text: str,
    expected: str | None,
    workspace: Workspace,
    bucket_processor: SalmonnProcessor,
    tmp_path: Path,
) -> None:
    row = {"path": str(workspace.folder / "clip0.wav"), "sentence": "hi", "task": "quiz", "n": 3, "share": 0.5}
    row |= {"Q": 7, "template": "a form", "rng": "dice", "sure": True, "empty": ""}
    source = {"path": str(write_jsonl(tmp_path / "rows.jsonl", [row | ({"prompt": text} if own else {})]))}
    reader = ClipReader(bucket_processor.feature_extractor, BadClips(5))
    maker = ExampleMaker({} if own else {"quiz": [text]}, reader)
    rows = load_rows(source | {"columns": {"text": "sentence"}})
    if expected is None:
        with pytest.raises(ValueError, match=r"which line 1 of .*rows\.jsonl lacks; give it a '\w+', or "):
            ExampleSet(rows, maker)
    else:
        assert ExampleSet(rows, maker)[0]["instruction"] == expected


def test_own_prompt_with_a_field_that_its_row_lacks_raises(
    workspace: Workspace, maker: ExampleMaker, tmp_path: Path
) -> None:
    rows = stream_rows(workspace, "asr", 2)
    file = write_jsonl(tmp_path / "rows.jsonl", [rows[0], rows[1] | {"prompt": "Reply as {json}."}])
    message = r"The prompt 'Reply as \{json\}\.' names \{json\}, which line 2 of .*rows\.jsonl lacks"
    with pytest.raises(ValueError, match=message):
        ExampleSet(load_rows(str(file)), maker)


def stream_rows(workspace: Workspace, task: str, count: int) -> list[dict[str, Any]]:
    return [
        {"path": str(workspace.folder / f"clip{index}.wav"), "text": f"{task} {index}", "task": task}
        for index in range(count)
    ]


def first(stream: ExampleStream, count: int, field: str = "answer") -> list[str]:
    return [example[field] for example in islice(stream, count)]


def test_streams_are_drawn_from_pass_after_pass(workspace: Workspace, maker: ExampleMaker) -> None:
    sources = [stream_rows(workspace, "asr", 6), stream_rows(workspace, "story", 3)]
    stream = ExampleStream([lambda epoch, rows=rows: rows for rows in sources], maker)
    answers = first(stream, 18)
    whole = sorted(row["text"] for rows in sources for row in rows)
    assert sorted(answers[:9]) == sorted(answers[9:]) == whole
    assert answers[:9] != answers[9:]
    assert answers == first(stream, 18)


def test_bad_clip_of_a_stream_is_passed_over(workspace: Workspace, maker: ExampleMaker) -> None:
    rows = stream_rows(workspace, "asr", 3)
    rows[1]["path"] = "/none.wav"
    stream = ExampleStream([lambda epoch: rows], maker)
    assert first(stream, 4) == ["asr 0", "asr 2"] * 2


def test_stream_without_a_usable_row_is_an_error(workspace: Workspace, maker: ExampleMaker) -> None:
    stream = ExampleStream([lambda epoch: stream_rows(workspace, "asr", 3)], maker, weights=[0.0])
    with pytest.raises(ValueError, match="no row that can be used"):
        next(iter(stream))


@pytest.mark.parametrize("path", ["audio.wav", None])
def test_bad_clip_in_memory_takes_no_others_with_it(
    path: str | None, workspace: Workspace, maker: ExampleMaker
) -> None:
    rows = stream_rows(workspace, "asr", 6)
    for row in rows:
        row["path"] = {"bytes": Path(row["path"]).read_bytes(), "path": path}
    rows[2]["path"]["bytes"] = rows[2]["path"]["bytes"][:20]
    stream = ExampleStream([lambda epoch: rows], maker)
    assert first(stream, 5) == [f"asr {index}" for index in (0, 1, 3, 4, 5)]
    assert len(maker.reader.bad_clips.names) == 1


def test_weights_of_streams_are_kept(workspace: Workspace, maker: ExampleMaker) -> None:
    sources = [stream_rows(workspace, task, 12) for task in ("asr", "story", "audio_caption")]
    stream = ExampleStream([lambda epoch, rows=rows: rows for rows in sources], maker, weights=[20.0, 1.0, 0.0])
    tasks = first(stream, 24, "task")
    assert Counter(tasks) == {"asr": 12, "story": 12}
    assert Counter(tasks[:12])["asr"] >= 9


def test_clips_of_other_rates_are_joined_at_one_rate(maker: ExampleMaker, tmp_path: Path) -> None:
    for name, rate in (("a.wav", 8000), ("b.wav", 44100)):
        soundfile.write(tmp_path / name, make_clip(1.0, rate=rate), rate)
    joined = maker.read({"path": str(tmp_path / "a.wav"), "expand_wav": [str(tmp_path / "b.wav")]})
    assert len(joined) == pytest.approx(2.1 * SAMPLING_RATE, abs=2)
