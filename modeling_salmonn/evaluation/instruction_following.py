"""Does an answer do what the instruction asked? Rules per task, for the following rate (paper, section 4.2).

A model that over-fits to its training tasks answers other instructions with what it always gives: a transcript or a
caption of the clip. The rules compare an answer with such fallbacks and look for the form that its task wants. They do
not judge whether an answer is right, and they read English. Each gives the reason why an answer does not follow, or
`None` if it does, so that whoever doubts a rate can read why.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modeling_salmonn.evaluation.text_statistics import (
    CLOSING_MARKS,
    ngram_overlap,
    repeats_itself,
    similarity,
    split_sentences,
    split_words,
)


# What a model that does not follow an instruction may answer instead, and the task that asks for it.
FALLBACK_TASKS = {"transcript": "asr", "caption": "audio_caption"}
FALLBACK_TOKENS = 100  # longest of them
STORY_WORDS, STORY_SENTENCES, STORY_SIGNS = 30, 3, 3  # at least
COPIED_SHARE = 0.5  # of an answer's sequences of three words
COPY_SIMILARITY = 0.7  # 1 for the same words in the same order
QUESTION_SIMILARITY = 0.5  # of an answer that is a question too
VALUE_WORDS = 6  # the longest value of a slot that may stand alone
TELLABLE_WORDS = 4  # in shorter speech, an answer from it and the speech itself can be the same

# Who acts, and how one thing follows another: stories have them, captions and lists do not.
NARRATIVE_WORDS = frozenset(
    split_words(
        "he she they him them his her their i we my our me us was were had did said once then when while after before "
        "until later suddenly finally soon began came went saw heard felt knew took found made told thought"
    )
)
PAST_TENSE = re.compile(r"\w{2,}[^e]ed")
QUESTION_WORDS = frozenset(
    split_words(
        "what who whom whose which when where why how is are am was were do does did can could will would shall "
        "should has have had"
    )
)
FUNCTION_WORDS = QUESTION_WORDS | frozenset(
    split_words(
        "a an the this that these those of in on at to for from by with and or but as it its i you he she we they "
        "me my your be been being there here"
    )
)
CONNECTIVES = frozenset(split_words("is are was be a an the of for to as in on at and it he she they says said"))


@dataclass(frozen=True)
class Context:
    """What an answer is judged against."""

    # What a model that does not follow might say of the clip instead: its own words, and the references there are.
    transcripts: Sequence[str] = ()
    captions: Sequence[str] = ()
    slots: Sequence[str] = ()  # names of those that `slot_filling` asks for
    question: str = ""  # what `speech_qa` asks
    wanted: str = ""  # in words for a judge that is a language model; those of the task's rule if empty


def context_of(row: Mapping[str, Any], transcript: str, caption: str) -> Context:
    """What an answer to a row is judged against: its references, and the model's own transcript and caption."""
    transcripts = filter(None, (transcript, row.get("transcript")))
    captions = filter(None, (caption, row.get("caption")))
    slots = str(row.get("slots") or row.get("Q") or "").split(",")
    return Context(
        transcripts=list(map(str, transcripts)),
        captions=list(map(str, captions)),
        slots=[slot.strip() for slot in slots if slot.strip()],
        question=str(row.get("Q") or row.get("question") or ""),  # numbers are questions too
    )


def why_no_story(answer: str, context: Context) -> str | None:
    """A story: no transcript, caption or loop, of some length, in several sentences, with signs of narration."""
    if repeats_itself(answer):
        return "repeats itself"
    copied = why_copied(answer, context)
    if copied is not None:
        return copied
    words = split_words(answer)
    if len(words) < STORY_WORDS:
        return f"fewer than {STORY_WORDS} words"
    if len(split_sentences(answer)) < STORY_SENTENCES:
        return f"fewer than {STORY_SENTENCES} sentences"
    narrated = sum(word in NARRATIVE_WORDS or bool(PAST_TENSE.fullmatch(word)) for word in words)
    return None if narrated >= STORY_SIGNS else "nothing is narrated"


def why_no_speech_answer(answer: str, context: Context) -> str | None:
    """An answer to a written question about speech: not the question again, nor all that is said.

    Words of the speech may well be the answer; so speech of less than four words tells nothing.
    """
    if not split_words(answer):
        return "empty"
    if context.question and repeats_question(answer, context.question):
        return "repeats the question"
    tellable = [text for text in context.transcripts if len(split_words(text)) >= TELLABLE_WORDS]
    return why_copied(answer, Context(tellable, context.captions))


def why_no_spoken_query_answer(answer: str, context: Context) -> str | None:
    """An answer to a spoken question: neither the question again nor a caption."""
    if not split_words(answer):
        return "empty"
    if any(repeats_question(answer, question) for question in context.transcripts):
        return "repeats the question"
    return why_copied(answer, Context(captions=context.captions))


def why_no_co_reasoning(answer: str, context: Context) -> str | None:
    """An answer to a spoken question about the sounds behind it.

    It is not compared with captions: naming the sound may be a caption and the answer.
    """
    return why_no_spoken_query_answer(answer, Context(context.transcripts))


def why_no_slots(answer: str, context: Context) -> str | None:
    """Each slot that is asked for is named with a value behind it; a single one may be answered by its value alone."""
    if not context.slots:
        raise ValueError("slot_filling needs the names of its slots; give the row 'slots', such as 'city, day'.")
    words = split_words(answer)
    if not words:
        return "empty"
    copied = why_copied(answer, context)
    if copied is not None:
        return copied
    missing = [slot for slot in context.slots if not slot_value(words, slot, context.slots)]
    if not missing or (len(context.slots) == 1 and is_value(words, context.slots[0])):
        return None
    return f"no value for {', '.join(missing)}"


def is_value(words: Sequence[str], slot: str) -> bool:
    """Whether an answer can be the value of a slot: short, and more than the slot's name."""
    return len(words) <= VALUE_WORDS and not set(words) <= CONNECTIVES | set(split_words(slot))


def slot_value(words: Sequence[str], slot: str, slots: Sequence[str]) -> list[str]:
    """The words behind the first mention of a slot that are neither connectives nor another slot's name."""
    found = find_words(words, split_words(slot))
    if found is None:
        return []
    rest = list(words[found + len(split_words(slot)) :])
    for other in slots:  # the value ends where the next slot is named
        rest = rest[: find_words(rest, split_words(other))]
    return [word for word in rest if word not in CONNECTIVES]


def find_words(words: Sequence[str], wanted: Sequence[str]) -> int | None:
    """Where a sequence of words begins within another; `None` if it does not occur."""
    for start in range(len(words) - len(wanted) + 1):
        if list(words[start : start + len(wanted)]) == list(wanted):
            return start
    return None


def why_copied(answer: str, context: Context) -> str | None:
    """The fallback that an answer mostly is, if any."""
    if any(copies(answer, transcript) for transcript in context.transcripts):
        return "copies the transcript"
    if any(copies(answer, caption) for caption in context.captions):
        return "copies the caption"
    return None


def copies(answer: str, source: str) -> bool:
    """Whether an answer is mostly taken from a text: half of its sequences of three words, or almost the same words.

    An answer of less than half the text's words may quote it.
    """
    length, source_length = len(split_words(answer)), len(split_words(source))
    if not source_length or 2 * length < source_length:
        return False
    return ngram_overlap(answer, source) >= COPIED_SHARE or similarity(answer, source) >= COPY_SIMILARITY


def repeats_question(answer: str, question: str) -> bool:
    """Whether an answer is a question again: it says nothing new, or asks in much the same words.

    "Shakespeare wrote Romeo and Juliet." is no repetition of "Who wrote Romeo and Juliet?", although it differs in a
    word alone; "Who rode Romeo and Juliet?" is one.
    """
    words, asked = split_words(answer), split_words(question)
    new = set(words) - set(asked) - FUNCTION_WORDS
    if not new and 2 * len(words) >= len(asked):
        return bool(asked)
    return asks(answer) and similarity(answer, question) >= QUESTION_SIMILARITY


def asks(text: str) -> bool:
    """Whether a text is a question, by its mark or its first word."""
    words = split_words(text)
    return text.rstrip(CLOSING_MARKS).endswith("?") or (bool(words) and words[0] in QUESTION_WORDS)


RULES: Mapping[str, Callable[[str, Context], str | None]] = {
    "story": why_no_story,
    "speech_qa": why_no_speech_answer,
    "spoken_query": why_no_spoken_query_answer,
    "slot_filling": why_no_slots,
    "co_reasoning": why_no_co_reasoning,
}


def why_not_followed(task: str, answer: str, context: Context) -> str | None:
    """Why an answer does not follow, by the rule of its task, in a few words; `None` if it does.

    Raises:
        ValueError: for a task without a rule, and for `slot_filling` without slots.
    """
    if task not in RULES:
        raise ValueError(f"There is no rule for the task {task!r}; there are rules for {', '.join(RULES)}.")
    return RULES[task](answer, context)
