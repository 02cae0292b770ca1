"""Each public data set, read from a small look-alike with the columns and folders of the original."""

from pathlib import Path

import datasets
import pytest
from public_files import (
    audio,
    hub_file,
    read,
    text_of,
    write_clips,
    write_csv,
    write_jsonl,
    write_librispeech,
    write_parquet,
)

from modeling_salmonn.data.rows import Row
from modeling_salmonn.evaluation.public_data import load_public


pytestmark = pytest.mark.usefixtures("own_caches")


@pytest.mark.parametrize("part", ["clean", "other"])
def test_librispeech_is_read_from_all_its_files(part: str, folder: Path) -> None:
    write_librispeech(folder / f"all/test.{part}/0000.parquet", "HE SAID SO", "SHE DID NOT")
    write_librispeech(folder / f"all/test.{part}/0001.parquet", "THE END")
    write_librispeech(folder / "all/train.clean.100/0000.parquet", "NOT FOR TESTING")
    rows = read(f"librispeech_{part}", folder)
    assert [row["text"] for row in rows] == ["HE SAID SO", "SHE DID NOT", "THE END"]
    assert rows[0] == {"path": audio("0.flac"), "task": "asr", "text": "HE SAID SO"}


def test_gigaspeech_loses_its_tags_and_the_segments_without_words(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [
        "AS THEY'RE LEAVING <COMMA> CAN YOU <QUESTIONMARK>",
        "<MUSIC>",
        "<NOISE> <SIL>",
        "<OTHER>",
        "YES <PERIOD>",
    ]
    known = {"speaker": "N/A", "begin_time": 0.5, "end_time": 1.5, "audio_id": "POD1", "title": "T", "url": "u"}
    known |= {"source": 1, "category": 3, "original_full_path": "p.opus"}
    rows = [known | {"segment_id": f"S{n}", "text": text, "audio": audio(f"S{n}")} for n, text in enumerate(texts)]
    write_parquet(folder / "test/test-00000-of-00001.parquet", rows, audio=datasets.Audio(decode=False))
    assert [row["text"] for row in read("gigaspeech", folder)] == ["AS THEY'RE LEAVING CAN YOU", "YES"]
    assert "gigaspeech: leaving out 3 rows without words." in caplog.text


@pytest.mark.parametrize(("pair", "language"), [("en_de", "German"), ("en_zh-CN", "Chinese"), ("en_ja", "Japanese")])
def test_covost_is_read_from_its_table_and_common_voice(pair: str, language: str, folder: Path) -> None:
    lines = ["path\tsentence\ttranslation\tclient_id", 'cv_1.mp3\tSay "hi\tSag "hallo\tx1', "cv_2.mp3\tA\\\tB\tC\tx2"]
    text_of(folder / f"covost_v2.{pair}.test.tsv", "\n".join(lines) + "\n")
    write_clips(folder / "clips", "cv_1.wav", "cv_2.wav")
    for name in ("cv_1", "cv_2"):  # libsndfile goes by what a file holds
        (folder / f"clips/{name}.wav").rename(folder / f"clips/{name}.mp3")
    first, second = read(f"covost2_{pair}", folder)
    assert first["path"] == f"{folder}/clips/cv_1.mp3"
    assert (first["text"], first["transcript"]) == ('Sag "hallo', 'Say "hi')
    assert (second["text"], second["transcript"]) == ("C", "A\tB")
    assert (first["task"], first["language"]) == ("translation", language)


def test_broken_line_of_a_table_raises(folder: Path) -> None:
    lines = ["path\tsentence\ttranslation\tclient_id", "cv_1.mp3\tNo translation\tx1"]
    text_of(folder / "covost_v2.en_de.test.tsv", "\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"Line 2 of .*en_de.test.tsv has not as many fields"):
        load_public("covost2_en_de", folder)


def caption_rows(*clips: str) -> list[Row]:
    """Five captions of each clip, those of different clips in turns."""
    return [
        {"audiocap_id": 10 * n + start, "youtube_id": clip, "start_time": start, "caption": f"{clip} {n}"}
        for n in range(5)
        for start, clip in enumerate(clips)
    ]


def test_captions_of_a_clip_are_grouped_and_lost_clips_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_parquet(folder / "data/test-00000-of-00001.parquet", caption_rows("-0Gj8-vB1q4", "7fmOlUlwoNg", "gone"))
    write_clips(folder, "-0Gj8-vB1q4_0.wav", "7fmOlUlwoNg_1.flac")
    first, second = read("audiocaps", folder)
    assert first["references"] == [f"-0Gj8-vB1q4 {n}" for n in range(5)]
    assert first["text"] == "-0Gj8-vB1q4 0"
    assert second["path"] == f"{folder}/7fmOlUlwoNg_1.flac"
    assert f"audiocaps: leaving out 1 rows whose clips are not in {folder}, such as gone_2." in caplog.text


def test_captions_come_from_the_hub_for_clips_in_a_folder(folder: Path, tmp_path: Path) -> None:
    write_parquet(hub_file(tmp_path, "d0rj/audiocaps", "data/test-00000-of-00001.parquet"), caption_rows("abc"))
    write_clips(folder, "abc_0.wav")
    assert [row["path"] for row in read("audiocaps", folder)] == [f"{folder}/abc_0.wav"]


def test_clotho_has_five_captions(folder: Path) -> None:
    captions = {f"caption_{n}": f"Water, caption {n}" for n in range(1, 6)}
    write_csv(folder / "clotho_captions_evaluation.csv", [{"file_name": "Santa Motor.wav"} | captions])
    write_clips(folder / "evaluation", "Santa Motor.wav")
    (row,) = read("clotho", folder)
    assert row["references"] == list(captions.values())
    assert row["text"] == "Water, caption 1"
    assert row["task"] == "audio_caption"


def test_iemocap_has_four_classes(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = ["neu", "hap", "exc", "ang", "sad", "fru", "xxx", "fru"]
    names = [f"Ses05F_impro01_F{n:03}" for n in range(len(labels))]
    lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
    for name, label in zip(names, labels, strict=True):
        lines += [f"[6.2901 - 8.2357]\t{name}\t{label}\t[2.5000, 2.5000, 2.5000]", "C-E1:\tFrustration;\t()", ""]
    evaluation = folder / "Session5/dialog/EmoEvaluation"
    text_of(evaluation / "Ses05F_impro01.txt", "\n".join(lines))
    text_of(evaluation / "Categorical/Ses05F_impro01_e1_cat.txt", f"{names[0]} :Anger; ()\n")
    text_of(folder / "Session4/dialog/EmoEvaluation/Ses04F_impro01.txt", "\n".join(lines))
    write_clips(folder / "Session5/sentences/wav/Ses05F_impro01", *(f"{name}.wav" for name in names))
    rows = read("iemocap", folder)
    assert [row["text"] for row in rows] == ["neutral", "happy", "happy", "angry", "sad"]
    assert rows[0]["path"] == f"{folder}/Session5/sentences/wav/Ses05F_impro01/{names[0]}.wav"
    assert "iemocap: leaving out 2 rows of the class 'fru'." in caplog.text
    assert "iemocap: leaving out 1 rows of the class 'xxx'." in caplog.text


def test_labels_of_another_form_raise(folder: Path) -> None:
    text_of(folder / "Session5/dialog/EmoEvaluation/Ses05F_impro01.txt", "Ses05F_impro01_F000,neu\n")
    with pytest.raises(ValueError, match=r"Ses05F_impro01.txt has no lines of the form '\[start - end\]"):
        load_public("iemocap", folder)


def test_musiccaps_has_the_rows_for_testing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = {"start_s": 30, "end_s": 40, "audioset_positive_labels": "/m/04rlf", "aspect_list": "['slow', 'sad']"}
    rows = [
        known | {"ytid": f"id{n}", "caption": f'A "slow" song, {n}.', "author_id": 4} | {"is_balanced_subset": False}
        for n in range(3)
    ]
    write_csv(folder / "musiccaps-public.csv", [row | {"is_audioset_eval": row["ytid"] != "id1"} for row in rows])
    write_clips(folder, "id0.wav", "id1.wav", "id2.wav")
    assert [row["text"] for row in read("musiccaps", folder)] == ['A "slow" song, 0.', 'A "slow" song, 2.']
    assert "musiccaps: leaving out 1 rows that are for training." in caplog.text


def write_librimix(folder: Path) -> None:
    mixture = "1580-141083-0046_61-70968-0040"
    row = {
        "mixture_ID": mixture,
        "mixture_path": f"/elsewhere/{mixture}.wav",
        "source_1_path": "a",
        "source_2_path": "b",
    }
    write_csv(folder / "Libri2Mix/wav16k/max/metadata/mixture_test_mix_clean.csv", [row | {"length": 1600}])
    write_clips(folder / "Libri2Mix/wav16k/max/test/mix_clean", f"{mixture}.wav")
    transcript = "1580-141083-0045 NOT THIS\n1580-141083-0046 THE FIRST VOICE\n"
    text_of(folder / "LibriSpeech/test-clean/1580/141083/1580-141083.trans.txt", transcript)


def test_librimix_has_a_line_for_each_voice(folder: Path) -> None:
    write_librimix(folder)
    text_of(folder / "LibriSpeech/test-clean/61/70968/61-70968.trans.txt", "61-70968-0040 AND THE SECOND\n")
    (row,) = read("libri2mix", folder)
    assert row["text"] == "THE FIRST VOICE\nAND THE SECOND"
    assert row["path"].startswith(str(folder))


def test_mixture_without_transcript_raises(folder: Path) -> None:
    write_librimix(folder)
    with pytest.raises(ValueError, match=r"trans.txt in .* has \['61-70968-0040'\]. Run generate_librimix.sh"):
        load_public("libri2mix", folder)


def test_voxceleb_has_pairs(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    clips = [f"id1027{n}/x6uYqmx31kE/0000{n}.wav" for n in range(3)]
    trials = [f"1 {clips[0]} {clips[1]}", f"0 {clips[0]} {clips[2]}", f"0 {clips[1]} id10309/gone/00001.wav"]
    text_of(folder / "veri_test2.txt", "\n".join(trials) + "\n")
    write_clips(folder / "wav", *clips)
    same, different = read("voxceleb1", folder)
    assert same["path"] == f"{folder}/wav/{clips[0]}"
    assert same["expand_wav"] == [f"{folder}/wav/{clips[1]}"]
    assert (same["text"], different["text"]) == ("Yes", "No")
    assert "leaving out 1 rows whose clips are not in" in caplog.text
    assert "such as wav/id10309/gone/00001.wav" in caplog.text


@pytest.mark.parametrize("line", ["2 a.wav b.wav", "1 a.wav", ""])
def test_trial_of_another_form_raises(line: str, folder: Path) -> None:
    text_of(folder / "veri_test2.txt", f"{line}\n1 a.wav b.wav\n")
    with pytest.raises(ValueError, match=r"Line 1 of .* is .*; it needs to be '1 PATH PATH'"):
        load_public("voxceleb1", folder)


def slurp_row(sentence: str, recordings: list[str], entities: list[Row]) -> Row:
    tokens = [{"surface": word, "id": n, "lemma": word, "pos": "NN"} for n, word in enumerate(sentence.split())]
    files = [{"file": name, "wer": 0.0, "ent_wer": None, "status": "correct"} for name in recordings]
    known = {"slurp_id": 9054, "sentence_annotation": sentence, "intent": "calendar_set", "action": "set"}
    return known | {"sentence": sentence, "tokens": tokens, "recordings": files, "entities": entities}


def test_slurp_has_slots_for_each_recording(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    entities = [
        {"span": [0, 1], "type": "event_name"},
        {"span": [4, 5], "type": "date"},
        {"span": [7], "type": "date"},
    ]
    spoken = slurp_row("mona 's talk on next week or tuesday", ["audio-1-headset.flac", "audio-1.flac"], entities)
    silent = slurp_row("increase the brightness", ["audio-2.flac"], [])
    write_jsonl(folder / "dataset/slurp/test.jsonl", [silent, spoken])
    write_clips(folder / "audio/slurp_real", "audio-1-headset.flac", "audio-1.flac", "audio-2.flac")
    first, second = read("slurp", folder)
    assert first["path"] == f"{folder}/audio/slurp_real/audio-1-headset.flac"
    assert first["slots"] == "event name, date"
    assert first["references"] == ["mona's", "next week", "tuesday"]
    assert first["text"] == "event name: mona's, date: next week, date: tuesday"
    assert first["transcript"] == "mona 's talk on next week or tuesday"
    assert second == first | {"path": f"{folder}/audio/slurp_real/audio-1.flac"}
    assert "slurp: leaving out 1 rows without entities." in caplog.text


def test_wiki_qa_has_the_right_answers_of_spoken_questions(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    pairs = [("Q0", "It wets.", 1), ("Q0", "No.", 0), ("Q0", "It falls.", 1), ("Q4", "No.", 0)]
    rows = [
        {"question_id": name, "question": f"what is {name}", "document_title": "T", "answer": answer, "label": label}
        for name, answer, label in pairs
    ]
    write_parquet(folder / "data/test-00000-of-00001.parquet", rows, label=datasets.ClassLabel(names=["0", "1"]))
    write_clips(folder, "Q0.wav", "Q4.wav")
    (row,) = read("wiki_qa", folder)
    assert row["references"] == ["It wets.", "It falls."]
    assert row["question"] == row["transcript"] == "what is Q0"
    assert (row["text"], row["task"]) == ("It wets.", "spoken_query")
    assert "wiki_qa: leaving out 1 rows without a right answer." in caplog.text


def test_inspec_has_all_phrases_of_spoken_abstracts(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    phrases = [(["data mining"], ["statistics"]), ([], None)]
    rows = [
        {
            "paper_id": 1001 + n,
            "document": ["About", "data", "mining", "."],
            "doc_bio_tags": ["O", "B", "I", "O"],
            "extractive_keyphrases": present,
            "abstractive_keyphrases": absent,
        }
        for n, (present, absent) in enumerate(phrases)
    ]
    write_jsonl(folder / "test.jsonl", rows)
    write_clips(folder, "1001.wav", "1002.wav")
    (row,) = read("inspec", folder)
    assert row["references"] == ["data mining", "statistics"]
    assert (row["text"], row["transcript"]) == ("data mining, statistics", "About data mining .")
    assert "inspec: leaving out 1 rows without phrases." in caplog.text


def test_rows_of_another_form_are_told_with_the_data_set(folder: Path) -> None:
    known = {"slurp_id": 1, "sentence": "wake me", "tokens": [{"word": "wake"}], "entities": [], "recordings": []}
    write_jsonl(folder / "dataset/slurp/test.jsonl", [known])
    with pytest.raises(ValueError, match=r"A row of test\.jsonl in .* is none of slurp \(KeyError: 'surface'\)"):
        load_public("slurp", folder)


def test_table_in_another_encoding_is_told_with_its_line(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "covost_v2.en_de.test.tsv").write_bytes(b"path\tsentence\ttranslation\na\t\xe9\tb\n")
    with pytest.raises(ValueError, match=r"Line 2 of .*covost_v2\.en_de\.test\.tsv is not UTF-8"):
        load_public("covost2_en_de", folder)
