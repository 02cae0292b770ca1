"""Answers that a model writes itself: what is kept, in which order, and what an interruption costs."""

import json
import random
from collections.abc import Mapping, Sequence
from copy import deepcopy
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model, tiny_processor
from counted_segments import counted_segments
from overfitted import CAPTION, CLIPS, PROMPTS, STORY, TRANSCRIPT, Overfitted, overfitted_model
from workspace import quick_config, write_jsonl

from modeling_salmonn.activation.clips import asks_question, choose_clips
from modeling_salmonn.activation.writing import (
    OPEN_QUESTIONS,
    SelfWriter,
    WritingSettings,
    why_rejected,
    write_answers,
)
from modeling_salmonn.data.answers import Answer
from modeling_salmonn.data.clips import BadClips, ClipReader
from modeling_salmonn.data.examples import Example, ExampleMaker
from modeling_salmonn.data.rows import load_rows
from modeling_salmonn.evaluation.answering import Answerer, Decoding
from modeling_salmonn.evaluation.instruction_following import Context


STORIES: dict[str, Any] = {"question_share": 0.0, "lora_scale": 0.0, "min_words": 20, "max_new_tokens": 170}
# Nonsense, different for every draw.
NOISE: dict[str, Any] = {"question_share": 0.5, "min_words": 3, "max_new_tokens": 12}
NOISE |= {"temperature": 1000.0, "top_p": 1.0, "batch_size": 2, "tries": 3, "answers": 3}


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory: pytest.TempPathFactory) -> Overfitted:
    return overfitted_model(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def answerer(overfitted: Overfitted) -> Answerer:
    return Answerer.from_pretrained(overfitted.model)


@pytest.fixture(scope="module")
def clips(overfitted: Overfitted) -> list[dict[str, Any]]:
    return list(load_rows(overfitted.clips, needs=("path",)))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def example(overfitted: Overfitted, task: str, clip: int = 0) -> Example:
    return {"instruction": PROMPTS[task][0], "audio": str(overfitted.folder / f"clip{clip}.wav")}


class Recording(Answerer):
    """Notes every batch, and is interrupted before the one that is named."""

    def __init__(self, answerer: Answerer, stop_at: int | None = None):
        super().__init__(answerer.model, answerer.processor)
        self.batches: list[tuple[int, Decoding]] = []
        self.stop_at = stop_at

    def answer(self, examples: Sequence[Mapping[str, Any]], decoding: Decoding, seed: object = 0) -> list[Answer]:
        if len(self.batches) == self.stop_at:
            raise KeyboardInterrupt
        self.batches.append((len(examples), decoding))
        return super().answer([dict(given) for given in examples], decoding, seed)


class Wavering(Recording):
    """Puts what was drawn into a sentence that is fit to keep, but for a transcript in every first try's first answer.

    Kept and rejected answers, tries and batches then do not depend on the draws, while the texts do.
    """

    def answer(self, examples: Sequence[Mapping[str, Any]], decoding: Decoding, seed: object = 0) -> list[Answer]:
        answers = super().answer(examples, decoding, seed)
        if not decoding.sample:
            return answers
        drawn = [sha256(answer.text.encode()).hexdigest() for answer in answers]
        told = [Answer(f"He saw {name} by the sea.", True) for name in drawn]
        return [Answer(TRANSCRIPT, True), *told[1:]] if str(seed).endswith("/0") else told


def test_batch_gives_the_answers_of_its_members(answerer: Answerer, overfitted: Overfitted) -> None:
    batch = [example(overfitted, "asr"), example(overfitted, "audio_caption", 1)]
    assert answerer.answer(batch, Decoding(20)) == [Answer(TRANSCRIPT, True), Answer(CAPTION, True)]
    assert [answerer.answer([one], Decoding(20))[0] for one in batch] == answerer.answer(batch, Decoding(20))


def test_answer_that_does_not_end_is_told(answerer: Answerer, overfitted: Overfitted) -> None:
    (answer,) = answerer.answer([example(overfitted, "asr")], Decoding(4))
    assert answer == Answer(TRANSCRIPT[:4], False)


def test_sampling_follows_the_seed_and_leaves_the_generators_alone(answerer: Answerer, overfitted: Overfitted) -> None:
    batch = [example(overfitted, "story", clip) for clip in (0, 1)]
    decoding = Decoding(12, sample=True, temperature=1000.0, top_p=1.0)  # any token, whatever was learnt
    before = torch.random.get_rng_state()
    first, again, other = (answerer.answer(batch, decoding, seed) for seed in ("a", "a", "b"))
    assert first == again != other
    assert torch.equal(torch.random.get_rng_state(), before)


def test_over_fitted_model_tells_stories_at_a_discounted_scale_alone(
    answerer: Answerer, overfitted: Overfitted
) -> None:
    (full,) = answerer.answer([example(overfitted, "story")], Decoding(170))
    (discounted,) = answerer.answer([example(overfitted, "story")], Decoding(170, lora_scale=0.0))
    assert (full.text, discounted.text) == (TRANSCRIPT, STORY)


def test_stories_are_kept_as_a_manifest_for_training(
    answerer: Answerer, clips: list[dict[str, Any]], tmp_path: Path
) -> None:
    recording = Recording(answerer)
    report = write_answers(recording, clips, tmp_path, PROMPTS, WritingSettings(answers=5, batch_size=3, **STORIES))
    assert (report.file, report.kept, report.rejected) == (tmp_path / "answers.jsonl", 5, {})
    assert [size for size, _ in recording.batches] == [3, 3, 3, 2, 2, 2]  # transcripts, captions and stories
    assert [(decoding.sample, decoding.lora_scale) for _, decoding in recording.batches[:3]] == [
        (False, None),
        (False, None),
        (True, 0.0),
    ]
    rows = load_rows(str(report.file))
    assert {row["text"] for row in rows} == {STORY}
    assert {(row["transcript"], row["caption"]) for row in rows} == {(TRANSCRIPT, CAPTION)}
    paths = [row["path"] for row in rows]
    assert len(set(paths)) == 5
    assert set(paths) < {row["path"] for row in clips}
    maker = ExampleMaker({}, ClipReader(answerer.processor.feature_extractor, BadClips(0)))
    made = maker.make(rows[0], random.Random(0))
    assert (made["instruction"], made["answer"], made["task"]) == ("Tell a story.", STORY, "story")
    assert len(made["audio"]) == 8000


def test_clips_are_encoded_once_for_transcript_caption_and_tries(
    answerer: Answerer, clips: list[dict[str, Any]], tmp_path: Path
) -> None:
    settings = WritingSettings(**(NOISE | {"min_words": 1000, "tries": 2, "answers": 1, "batch_size": 3}))
    fresh = Answerer(answerer.model, answerer.processor)
    with counted_segments() as counts, pytest.raises(ValueError, match="No answer about"):
        write_answers(fresh, clips, tmp_path, PROMPTS, settings)
    assert counts == {"speech": len(clips), "audio": len(clips)}


def test_scale_is_half_of_the_trained_one_by_default(
    answerer: Answerer, clips: list[dict[str, Any]], tmp_path: Path
) -> None:
    recording = Recording(answerer, stop_at=3)  # after a transcript, a caption and a story
    settings = WritingSettings(answers=2, question_share=0.0, max_new_tokens=4, batch_size=1)
    with pytest.raises(KeyboardInterrupt):
        write_answers(recording, clips, tmp_path, PROMPTS, settings)
    assert answerer.model.config.lora_scaling == 4.0
    assert [decoding.lora_scale for _, decoding in recording.batches] == [None, None, 2.0]


def test_fallbacks_are_not_kept_and_their_reasons_are_counted(
    answerer: Answerer, clips: list[dict[str, Any]], tmp_path: Path
) -> None:
    settings = WritingSettings(**(STORIES | {"lora_scale": 4.0, "tries": 2, "top_p": 0.1}))
    with pytest.raises(ValueError, match=rf"No answer about {CLIPS} clips was kept: 12 copies the transcript"):
        write_answers(answerer, clips, tmp_path, PROMPTS, settings)
    rejected = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert [row["attempt"] for row in rejected[:8]] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert {(row["text"], row["reason"]) for row in rejected} == {(TRANSCRIPT, "copies the transcript")}


@pytest.mark.parametrize(("task", "name"), [("asr", "transcript"), ("audio_caption", "caption")])
def test_copies_of_references_are_not_kept(
    task: str, name: str, answerer: Answerer, clips: list[dict[str, Any]], tmp_path: Path
) -> None:
    settings = WritingSettings(**(STORIES | {"tries": 1}))
    told = [row | {"task": task, "text": STORY} for row in clips]  # the model's own are others
    with pytest.raises(ValueError, match=rf"No answer about {CLIPS} clips was kept: {CLIPS} copies the {name}"):
        write_answers(answerer, told, tmp_path, PROMPTS, settings)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (STORY, None),
        ("It was a day.", "too short"),
        (STORY[:60] + " and she ran" * 9, "loops"),
        ("The wind blew over the sea and the birds sang.", "copies the transcript"),
        ("A bird sings over the sea.", "copies the caption"),
        ("", "too short"),
    ],
)
def test_reason_for_not_keeping_an_answer(text: str, reason: str | None) -> None:
    context = Context(["The wind blew over the sea and birds sang."], ["A bird sings over the sea"])
    assert why_rejected(text, context, min_words=20) == reason


def test_same_seed_writes_the_same_files_and_another_seed_others(
    answerer: Answerer, clips: list[dict[str, Any]], tmp_path: Path
) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_answers(Wavering(answerer), clips, tmp_path / name, PROMPTS, WritingSettings(seed=seed, **NOISE))
    assert files(tmp_path / "a") == files(tmp_path / "b")
    texts = [{row["text"] for row in load_rows(str(tmp_path / name / "answers.jsonl"))} for name in "ac"]
    assert len(texts[0]) == len(texts[1]) == 3
    assert not texts[0] & texts[1]


def test_interrupted_writing_resumes_to_the_same_files(
    answerer: Answerer, clips: list[dict[str, Any]], tmp_path: Path
) -> None:
    settings = WritingSettings(seed=3, **NOISE)
    whole = Wavering(answerer)
    write_answers(whole, clips, tmp_path / "whole", PROMPTS, settings)
    expected = files(tmp_path / "whole")
    assert expected["answers.jsonl"].count(b"\n") > 1
    assert b"\n" in expected["rejected.jsonl"]
    written = set()
    for stop in (3, len(whole.batches) - 1):
        folder = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            write_answers(Wavering(answerer, stop), clips, folder, PROMPTS, settings)
        left = files(folder)
        written.add(left.get("answers.jsonl", b""))
        assert all(expected[name].startswith(left[name]) for name in left if name.endswith(".jsonl"))
        write_answers(Wavering(answerer), clips, folder, PROMPTS, settings)
        assert files(folder) == expected
    assert len(written) > 1  # answers were on disk before the run was over


def test_killed_writing_loses_no_whole_line(answerer: Answerer, clips: list[dict[str, Any]], tmp_path: Path) -> None:
    settings = WritingSettings(seed=3, **NOISE)
    write_answers(Wavering(answerer), clips, tmp_path, PROMPTS, settings)
    expected = files(tmp_path)
    record = json.loads(expected["writing.json"]) | {"finished": False}
    (tmp_path / "writing.json").write_text(json.dumps(record))
    (tmp_path / "answers.jsonl").write_bytes(expected["answers.jsonl"][:-25])
    write_answers(Wavering(answerer), clips, tmp_path, PROMPTS, settings)
    assert files(tmp_path) == expected


def test_finished_answers_that_were_changed_by_hand_stay_so(
    answerer: Answerer, clips: list[dict[str, Any]], tmp_path: Path
) -> None:
    settings = WritingSettings(answers=3, **STORIES)
    write_answers(answerer, clips, tmp_path, PROMPTS, settings)
    file = tmp_path / "answers.jsonl"
    file.write_text(file.read_text().replace("One day", "Once").split("\n", 1)[1])
    recording = Recording(answerer)
    assert write_answers(recording, clips, tmp_path, PROMPTS, settings).kept == 2
    assert recording.batches == []
    assert file.read_text().count("Once he ran") == 2


OTHERS = [
    ("writing.json", '{"seed": 9}', "other settings: .*seed 9 instead of 0.*; choose another folder"),
    ("writing.json", "[]", r"writing\.json holds a list, but it needs an object"),
    ("answers.jsonl", "[]", r"but no writing\.json"),
]


@pytest.mark.parametrize(("name", "content", "message"), OTHERS)
def test_folder_of_something_else_raises(
    name: str, content: str, message: str, answerer: Answerer, clips: Any, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        write_answers(answerer, clips, tmp_path, PROMPTS, WritingSettings(answers=1, **STORIES))
    assert files(tmp_path) == {name: content.encode()}


def test_folder_with_answers_of_other_settings_raises(
    answerer: Answerer, clips: list[dict[str, Any]], bucket_model: Any, bucket_processor: Any, tmp_path: Path
) -> None:
    write_answers(answerer, clips, tmp_path, PROMPTS, WritingSettings(answers=1, **STORIES))
    expected = files(tmp_path)
    other = Answerer(bucket_model, bucket_processor)
    with pytest.raises(ValueError, match="other settings: answers 1 instead of 2, seed 0 instead of 5; choose"):
        write_answers(answerer, clips, tmp_path, PROMPTS, WritingSettings(answers=2, seed=5, **STORIES))
    with pytest.raises(ValueError, match=r"other settings: clips \S+ instead of \S+;"):
        write_answers(answerer, clips[:2], tmp_path, PROMPTS, WritingSettings(answers=1, **STORIES))
    with pytest.raises(ValueError, match=r"other settings: weights \S+ instead of \S+;"):
        write_answers(other, clips, tmp_path, PROMPTS, WritingSettings(answers=1, **STORIES))
    halved = Answerer(deepcopy(answerer.model).bfloat16(), answerer.processor)
    with pytest.raises(ValueError, match=r"other settings: dtype 'torch.float32' instead of 'torch.bfloat16'"):
        write_answers(halved, clips, tmp_path, PROMPTS, WritingSettings(answers=1, **STORIES))
    assert files(tmp_path) == expected


def test_folder_with_answers_to_other_prompts_raises(
    answerer: Answerer, clips: list[dict[str, Any]], tmp_path: Path
) -> None:
    settings = WritingSettings(answers=1, **STORIES)
    write_answers(answerer, clips, tmp_path, PROMPTS, settings)
    expected = files(tmp_path)
    for task in PROMPTS:
        other = PROMPTS | {task: ["Do something else."]}
        with pytest.raises(ValueError, match=r"other settings: prompts \S+ instead of \S+; choose another"):
            write_answers(answerer, clips, tmp_path, other, settings)
    write_answers(answerer, clips, tmp_path, PROMPTS | {"slot_filling": ["Fill in {slots}."]}, settings)
    assert files(tmp_path) == expected


def test_question_of_a_task_without_instructions_is_asked_all_the_same(
    answerer: Answerer, clips: list[dict[str, Any]], tmp_path: Path
) -> None:
    asking = [row | {"task": "emotion_qa", "Q": "How does he feel?"} for row in clips]
    settings = WritingSettings(**(NOISE | {"question_share": 1.0, "answers": 1}))
    report = write_answers(Wavering(answerer), asking, tmp_path, PROMPTS, settings)
    rows = [json.loads(line) for line in report.file.read_text().splitlines()]
    assert [(row["task"], row["Q"]) for row in rows] == [("audio_qa", "How does he feel?")]


def test_clip_that_cannot_be_read_is_replaced_by_another(
    answerer: Answerer, clips: list[dict[str, Any]], tmp_path: Path
) -> None:
    settings = WritingSettings(answers=2, **STORIES)
    first = choose_clips(clips, settings.seed)[0]["path"]
    renamed = [row | {"path": "/none.wav"} if row["path"] == first else row for row in clips]
    report = write_answers(answerer, renamed, tmp_path, PROMPTS, settings)
    assert (report.kept, report.rejected) == (2, {"unreadable clip": 1})
    assert json.loads((tmp_path / "rejected.jsonl").read_text())["path"] == "/none.wav"


def test_fewer_answers_than_wanted_are_reported(
    answerer: Answerer, clips: list[dict[str, Any]], tmp_path: Path
) -> None:
    report = write_answers(answerer, clips[:2], tmp_path, PROMPTS, WritingSettings(answers=5, **STORIES))
    assert report.summary() == f"2 answers in {tmp_path / 'answers.jsonl'}; not kept: none."


def test_answer_that_is_cut_off_ends_with_a_whole_sentence(
    answerer: Answerer, clips: list[dict[str, Any]], tmp_path: Path
) -> None:
    settings = WritingSettings(answers=1, **(STORIES | {"max_new_tokens": 90}))
    report = write_answers(answerer, clips, tmp_path, PROMPTS, settings)
    text = json.loads(report.file.read_text())["text"]
    assert text == "One day he ran to the sea. She sat by it and sang. They saw a red bird go up."


def test_share_of_the_clips_gets_questions(answerer: Answerer, clips: list[dict[str, Any]], tmp_path: Path) -> None:
    own = clips[2] | {"task": "speech_qa", "Q": "Who calls {whom}?"}
    prompts = PROMPTS | {"speech_qa": ["Listen. {question}"]}
    settings = WritingSettings(**(NOISE | {"answers": CLIPS}))
    report = write_answers(Wavering(answerer), [*clips, own], tmp_path, prompts, settings)
    rows = load_rows(str(report.file))
    assert sorted(row["task"] for row in rows).count("story") == CLIPS // 2
    questions = {row["path"]: row for row in rows if row["task"] != "story"}
    assert len(questions) == CLIPS // 2
    assert all(row["Q"] in (*OPEN_QUESTIONS, own["Q"]) for row in questions.values())


def test_question_of_its_own_is_asked_about_a_clip(answerer: Answerer, tmp_path: Path) -> None:
    prompts = PROMPTS | {"speech_qa": ["Listen. {question}"]}
    writer = SelfWriter(answerer, tmp_path, prompts, WritingSettings(question_share=1.0))
    row = writer._instruct(0, {"path": "a.wav", "task": "speech_qa", "Q": "Who calls {whom}?"}, attempt=1)
    assert row == {"path": "a.wav", "attempt": 1, "task": "speech_qa", "prompt": "Listen. {question}"} | {
        "Q": "Who calls {whom}?"
    }
    assert writer._example(row, None)["instruction"] == "Listen. Who calls {whom}?"
    other = writer._instruct(0, {"path": "a.wav", "task": "asr", "expand_wav": ["b.wav"]}, attempt=0)
    assert other["Q"] in OPEN_QUESTIONS
    assert (other["task"], other["expand_wav"]) == ("audio_qa", ["b.wav"])


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.25, 3), (0.5, 6), (1.0, 12)])
def test_questions_come_at_even_intervals(share: float, expected: int) -> None:
    asked = [asks_question(index, share) for index in range(12)]
    assert sum(asked) == expected
    assert abs(sum(asked[:6]) - expected / 2) <= 0.5


def test_clips_are_chosen_once_with_their_question() -> None:
    rows = [{"path": f"{index}.wav", "task": "asr"} for index in range(20)]
    rows.insert(3, {"path": "7.wav", "task": "speech_qa", "question": "Why?"})
    chosen = choose_clips(rows, seed=1)
    assert sorted(row["path"] for row in chosen) == sorted({row["path"] for row in rows})
    assert [row.get("question") for row in chosen if row["path"] == "7.wav"] == ["Why?"]
    assert chosen == choose_clips(rows, seed=1)
    assert chosen != choose_clips(rows, seed=2)


def test_clips_are_chosen_with_the_references_of_all_their_rows() -> None:
    rows = [
        {"path": "a.wav", "task": "asr", "text": "Hello."},
        {"path": "a.wav", "task": "speech_qa", "text": "Ann.", "Q": "Who?", "caption": "A voice."},
        {"path": "a.wav", "task": "audio_caption", "text": "Another caption."},
    ]
    assert choose_clips(rows, seed=0) == [rows[1] | {"transcript": "Hello."}]


def test_clips_are_read_from_manifests_and_audio_folders(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"path": "a.wav", "expand_wav": ["b.wav"]}, {"path": "/c.wav", "Q": "Why?"}])
    assert list(load_rows(str(tmp_path / "rows.jsonl"), needs=("path",))) == [
        {"path": str(tmp_path / "a.wav"), "expand_wav": [str(tmp_path / "b.wav")]},
        {"path": "/c.wav", "Q": "Why?"},
    ]
    write_jsonl(tmp_path / "metadata.jsonl", [{"file_name": "d/e.opus"}, {"file_name": "https://x.org/f.wav"}])
    found = [row["path"] for row in list(load_rows(str(tmp_path), needs=("path",)))]
    assert found == [str(tmp_path / "d" / "e.opus"), "https://x.org/f.wav"]


def test_clip_without_a_path_raises(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"path": "a.wav"}, {"text": "words"}])
    with pytest.raises(ValueError, match=r"A row of .*rows\.jsonl has path=None: .*Give each row a path.* \(line 2\)"):
        list(load_rows(str(tmp_path / "rows.jsonl"), needs=("path",)))


def test_model_without_adapter_raises(clips: list[dict[str, Any]], tmp_path: Path) -> None:
    config = quick_config()
    answerer = Answerer(tiny_model(config), tiny_processor(config))
    with pytest.raises(ValueError, match="needs a LoRA adapter"):
        write_answers(answerer, clips, tmp_path / "out", PROMPTS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": 0}, "answers must be at least 1, got 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, got -1"),
        ({"question_share": 1.5}, "question_share is a share between 0 and 1, got 1.5"),
        ({"temperature": 0.0}, "temperature must be positive and top_p between 0 and 1, got 0.0 and 0.9"),
        ({"top_p": 0.0}, "top_p between 0 and 1, got 1.0 and 0.0"),
    ],
)
def test_settings_out_of_range_raise(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WritingSettings(**change)


def test_unknown_type_of_weights_raises(overfitted: Overfitted) -> None:
    with pytest.raises(ValueError, match="dtype is 'int8', but it needs one of float32, bfloat16, float16"):
        Answerer.from_pretrained(overfitted.model, "int8")
