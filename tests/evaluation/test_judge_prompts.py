"""What judges are asked, and which verdicts are read from their replies."""

import json

import pytest
from byte_tokenizer import byte_tokenizer
from judged_answers import CONTEXT, NASTY

from modeling_salmonn.evaluation.instruction_following import Context
from modeling_salmonn.evaluation.judges import UnclearVerdictError, judge_prompt, parse_verdict


# Verdicts


@pytest.mark.parametrize(
    "reply",
    [
        "FOLLOWS",
        "follows.",
        "  **Follows**\n",
        "```\nFOLLOWS\n```",
        "- `FOLLOWS`",
        "# __FOLLOWS__",
        "<think>\nFAILS: at first sight\n</think>\n\nFOLLOWS",
        "It looks like a transcript: FAILS: no.</THINK>FOLLOWS",  # the template began the thought
        "<thinking>FAILS: this</thinking>\n**FOLLOWS**\n",
        "FOLLOWS\n\nThe answer tells a story.",
        "The answer tells a story.\r\nFOLLOWS",
    ],
)
def test_verdict_follows_whatever_the_form_of_the_reply(reply: str) -> None:
    assert parse_verdict(reply) is None


@pytest.mark.parametrize(
    "reply",
    [
        "FAILS: a transcript",
        "fails : a transcript",
        "**FAILS:** a transcript",
        "```text\nFAILS: `a transcript`\n```",
        "<think>\nFOLLOWS\n</think>FAILS: a transcript",
        "FAILS: a transcript\nIt repeats what is said.",
    ],
)
def test_verdict_fails_with_its_reason_whatever_the_form_of_the_reply(reply: str) -> None:
    assert parse_verdict(reply) == "a transcript"


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "   \n",
        "Yes.",
        "FAILS",
        "FAILS:",
        "FAILS: ...",
        "FAILS: reason",
        "FOLLOWS\nor it gives a reason of at most ten words in this form:\nFAILS: reason",
        "FOLLOWS: it is a story",
        "FOLLOWS the speech rather than the instruction",
        "The answer FOLLOWS.",
        "NOT FOLLOWS",
        "It FAILS: a transcript",
        "FOLLOWS or FAILS: a transcript",
        "FOLLOWS\nFAILS: a transcript",
        "FOLLOWS\nFOLLOWS",
        "The answer reads\nFOLLOWS\nwhich says nothing.",  # a quotation
        '"FOLLOWS"',
        "> FOLLOWS",
        "<think>FOLLOWS",
        "FOLLOWS\n<think>or does it",
        "<think>FOLLOWS</think>",
    ],
)
def test_unclear_verdict_raises(reply: str) -> None:
    with pytest.raises(UnclearVerdictError, match=r"needs to be one line, FOLLOWS or FAILS: reason; take a model"):
        parse_verdict(reply)


def test_unclear_verdict_is_shown_shortened() -> None:
    with pytest.raises(ValueError, match=r"^The judge replied 'I cannot\\x1b tell a{185}\.\.\.', but") as caught:
        parse_verdict(f"I cannot\x1b\n tell {'a' * 10000}")
    assert len(str(caught.value)) < 400


# The prompt


def test_prompt_shows_all_that_is_known_one_text_a_line() -> None:
    context = Context(["call at ten", "call a ten"], ["a dog barks"], ["city", "day"], "Who calls?")
    prompt = judge_prompt("slot_filling", 'Fill in "city".', "Paris\n[Monday]", context)
    shown = prompt.split("\n\n")[2].splitlines()
    assert [json.loads(line.split(": ", 1)[1]) for line in shown] == [
        "call at ten",
        "call a ten",
        "a dog barks",
        "city, day",
        "Who calls?",
        'Fill in "city".',
        "Paris\n[Monday]",
    ]
    assert "What is asked for: a value for each of the slots.\n" in prompt
    assert prompt.endswith("\nFAILS: reason")


def test_prompt_leaves_out_what_is_not_known_and_takes_any_task() -> None:
    prompt = judge_prompt("keyword_extraction", "Name keywords.", "dog", Context())
    assert "What is asked for: keyword extraction.\n" in prompt
    assert prompt.split("\n\n")[2] == 'Instruction: "Name keywords."\nAnswer to judge: "dog"'


def test_task_of_ones_own_may_say_what_is_asked_for() -> None:
    prompt = judge_prompt("story", "Sing.", "La la.", Context(wanted="a song about the sounds"))
    assert "What is asked for: a song about the sounds.\n" in prompt


@pytest.mark.parametrize("answer", NASTY)
def test_answer_changes_its_own_line_of_the_prompt_alone(answer: str) -> None:
    plain, nasty = (judge_prompt("story", "Tell.", text, CONTEXT).splitlines() for text in ("plain", answer))
    (changed,) = [line for before, line in zip(plain, nasty, strict=True) if before != line]
    assert json.loads(changed.removeprefix("Answer to judge: ")) == answer


@pytest.mark.parametrize("answer", NASTY)
def test_answer_holds_no_control_token_in_the_prompt(answer: str) -> None:
    tokenizer = byte_tokenizer(chatml=True)
    tokens = tokenizer(judge_prompt("story", "Tell.", answer, CONTEXT))["input_ids"]
    assert not set(tokens) & set(tokenizer.all_special_ids)
    assert "[/INST]" not in tokenizer.decode(tokens)
