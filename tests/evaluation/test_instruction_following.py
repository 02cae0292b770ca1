"""The rules that tell answers from fallbacks, each with answers that follow and answers that do not."""

import ast
import sys

import pytest
from conftest import ROOT

from modeling_salmonn.evaluation.instruction_following import Context, context_of, why_not_followed


STORY = (
    "Tom waited at the old station. The train was late, and the wind howled across the empty platform. Suddenly he "
    "heard a whistle far away. He picked up his bag and smiled, because he knew that his sister had come home."
)
LIST = (
    "There is a train. There is a whistle. There is wind. There is a dog. There is a car. There is a bell. There is a "
    "bird. There is rain. There is music. There is a door. There is water."
)
LONG_SPEECH = (
    "Ladies and gentlemen, the train on platform four was delayed. We regret this and ask you to wait. Passengers who "
    "wanted to reach the coast had better take the bus that leaves from the square. They told us it was on time."
)
WHO = "Who wrote Romeo and Juliet?"
ANIMAL = "Which animal do you hear?"
BOOKING = "Book a train to Chicago for Wednesday."


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (STORY, None),
        (STORY[:60], "fewer than 30 words"),
        (STORY.replace(".", ","), "fewer than 3 sentences"),
        (LIST, "nothing is narrated"),
        (LONG_SPEECH, "copies the transcript"),
        (LONG_SPEECH.replace("train", "rain").replace("bus", "boat"), "copies the transcript"),
        ("A train whistles at a station.", "copies the caption"),
        (STORY + ' A voice said: "Passengers who wanted to reach the coast had better take the bus."', None),
        (" ".join(["The dog barked at the moon."] * 9), "repeats itself"),
        ("", "fewer than 30 words"),
    ],
)
def test_story(answer: str, problem: str | None) -> None:
    context = Context([LONG_SPEECH], ["A train whistles at a station"])
    assert why_not_followed("story", answer, context) == problem


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("Shakespeare.", None),
        ("Shakespeare wrote Romeo and Juliet.", None),
        ("Romeo and Juliet was written by William Shakespeare.", None),
        ("Who wrote Romeo and Juliet?", "repeats the question"),
        ("who wrote romeo and juliet", "repeats the question"),
        ("Who rode Romeo and Juliet?", "repeats the question"),
        ("Wrote Romeo and Juliet", "repeats the question"),
        ("A woman is asking something.", "copies the caption"),
        (" ... ", "empty"),
    ],
)
def test_spoken_query(answer: str, problem: str | None) -> None:
    context = Context([WHO], ["A woman is asking something"])
    assert why_not_followed("spoken_query", answer, context) == problem


def test_spoken_query_is_compared_with_what_the_model_understood() -> None:
    understood = "Her rode road meow and July it"
    assert why_not_followed("spoken_query", understood, Context([WHO])) is None
    assert why_not_followed("spoken_query", understood, Context([understood, WHO])) == "repeats the question"


def test_choice_that_the_question_offers_is_an_answer() -> None:
    context = Context(["Is a tomato a fruit or a vegetable?"])
    assert why_not_followed("spoken_query", "A fruit.", context) is None


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("A cat.", None),
        ("Yes, it's a cat, because it meows.", None),
        ("You hear a cat.", None),
        ("Which animal do you hear?", "repeats the question"),
        ("You hear an animal.", "repeats the question"),
        ("", "empty"),
    ],
)
def test_co_reasoning(answer: str, problem: str | None) -> None:
    assert why_not_followed("co_reasoning", answer, Context([ANIMAL], ["A cat."])) == problem


@pytest.mark.parametrize(("answer", "problem"), [("No.", None), ("Yes, a dog.", None), ("Is there a dog?", "repeats")])
def test_co_reasoning_takes_yes_and_no(answer: str, problem: str | None) -> None:
    found = why_not_followed("co_reasoning", answer, Context(["Is there a dog behind me?"]))
    assert found is None if problem is None else problem in str(found)


@pytest.mark.parametrize(
    ("slots", "answer", "problem"),
    [
        (["day"], "Wednesday.", None),
        (["day"], "The day is Wednesday.", None),
        (["day"], "A woman wants to go to the city by train.", "no value for day"),
        (["day"], "Day", "no value for day"),
        (["day"], "The day is", "no value for day"),
        (["day"], BOOKING, "copies the transcript"),
        (["day"], "Book the train to Chicago on Wednesday", "copies the transcript"),
        (["day"], "A woman speaks.", "copies the caption"),
        (["day"], "", "empty"),
        (["city", "day"], "City: Chicago, day: Wednesday", None),
        (["city", "day"], "The city is Chicago and the day is Wednesday.", None),
        (["city", "day"], "Wednesday.", "no value for city, day"),
        (["city", "day"], "city: Chicago", "no value for day"),
        (["city", "day"], "City and day: Wednesday", "no value for city"),
        (["music genre", "room"], "music genre: jazz\nroom: kitchen", None),
    ],
)
def test_slot_filling(slots: list[str], answer: str, problem: str | None) -> None:
    context = Context([BOOKING], ["A woman speaks"], slots=slots)
    assert why_not_followed("slot_filling", answer, context) == problem


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("To Chicago.", None),
        ("Wednesday", None),
        (BOOKING, "copies the transcript"),
        ("Where does the train go?", "repeats the question"),
        ("A woman speaks.", "copies the caption"),
        ("", "empty"),
    ],
)
def test_speech_question(answer: str, problem: str | None) -> None:
    context = Context([BOOKING], ["A woman speaks"], question="Where does the train go?")
    assert why_not_followed("speech_qa", answer, context) == problem


def test_short_speech_may_be_the_answer_to_a_question_about_it() -> None:
    assert why_not_followed("speech_qa", "Go on!", Context(["Go on."], question="What is said?")) is None
    assert why_not_followed("story", "Go on!", Context(["Go on."])) == "copies the transcript"


def test_task_without_a_rule_raises() -> None:
    with pytest.raises(ValueError, match="no rule for the task 'asr'; there are rules for story, speech_qa"):
        why_not_followed("asr", "text", Context())


def test_slot_filling_without_slots_raises() -> None:
    with pytest.raises(ValueError, match=r"needs the names of its slots; give the row 'slots'"):
        why_not_followed("slot_filling", "Wednesday", Context())


@pytest.mark.parametrize("name", ["instruction_following", "text_statistics"])
def test_rules_need_nothing_of_training(name: str) -> None:
    tree = ast.parse((ROOT / "modeling_salmonn" / "evaluation" / f"{name}.py").read_text())
    imported = {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    allowed = {"modeling_salmonn.evaluation.text_statistics", "jiwer"}
    assert {module for module in imported if module.split(".")[0] not in sys.stdlib_module_names} <= allowed


def test_context_holds_references_slots_and_question() -> None:
    context = context_of(
        {"slots": "city, day", "transcript": "To Rome.", "question": "Where?"}, "To roam.", "A voice."
    )
    assert (context.transcripts, context.captions) == (["To roam.", "To Rome."], ["A voice."])
    assert (context.slots, context.question) == (["city", "day"], "Where?")
    assert context_of({"Q": "day"}, "", "").slots == ["day"]
    assert context_of({}, "", "").transcripts == []
