"""Everyday phrases, numbers, times, codes and spelled words, composed from templates and written as spoken."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from string import ascii_uppercase

from recipes.salmonn_smol.tables import read_table


def say_number(number: int, form: str = "cardinal") -> str:
    """A number in words without marks: 2041 is "two thousand and forty one".

    Args:
        number (`int`): The number.
        form (`str`): Of num2words: `cardinal`, `ordinal` or `year`.
    """
    from num2words import num2words

    return num2words(number, to=form).replace("-", " ").replace(",", "")


class SpokenPhrases:
    """Composes everyday phrases, numbers, codes and spelled words from templates, without end.

    Args:
        words (`list[str]`): Words to spell letter by letter.
        seed (`int`): Seed of the choices.
    """

    def __init__(self, words: list[str], seed: int) -> None:
        self.random = Random(f"{seed} phrases")
        self.words = [word for word in words if len(word) <= 7]
        table = read_table("spoken_phrases")
        self.templates: list[str] = table["templates"]
        self.values: dict[str, list[str]] = table["slots"]
        self.digits = [say_number(digit) for digit in range(1, 10)]
        self.composers: dict[str, Callable[[], str]] = {
            "number": self.number,
            "count": partial(self.between, 2, 99),
            "degrees": partial(self.between, 5, 30),
            "digit": partial(self.between, 1, 9),
            "hour": partial(self.between, 1, 12),
            "ordinal": partial(self.between, 1, 31, "ordinal"),
            "year": partial(self.between, 1400, 2035, "year"),
            "clock": self.clock,
            "date": self.date,
            "digits": self.digit_sequence,
            "mixture": self.code,
        }

    def __iter__(self) -> Iterator[str]:
        while True:
            yield self.spelled_word() if self.random.random() < 0.1 else self.filled_template()

    def spelled_word(self) -> str:
        """Spell a word: "Harp, H, A, R, P."."""
        word = self.random.choice(self.words)
        return ", ".join([word.capitalize(), *word.upper()]) + "."

    def filled_template(self) -> str:
        """Fill a template's slots with different values."""
        text = re.sub(r"\{(\w+)\}", self._fill, self.random.choice(self.templates))
        return text[0].upper() + text[1:]

    def _fill(self, slot: re.Match[str]) -> str:
        name = slot[1]
        return self.random.choice(self.values[name]) if name in self.values else self.composers[name]()

    def number(self) -> str:
        """A number below a third of a million; all magnitudes come alike."""
        return say_number(int(10 ** self.random.uniform(0, 5.5)))

    def between(self, lowest: int, highest: int, form: str = "cardinal") -> str:
        """A number of a range."""
        return say_number(self.random.randint(lowest, highest), form)

    def clock(self) -> str:
        """A time of day in one of the usual ways."""
        hour, minute = self.between(1, 12), self.random.randint(1, 59)
        before = self.random.choice(["five", "ten", "twenty"])
        relative = ("half past", "a quarter to", "a quarter past", f"{before} to")
        digital = f"{hour} {'oh ' if minute < 10 else ''}{say_number(minute)}"
        return self.random.choice([f"{hour} o'clock", f"{self.random.choice(relative)} {hour}", digital])

    def date(self) -> str:
        """A day of the year."""
        month, day = self.random.choice(self.values["month"]), self.between(1, 31, "ordinal")
        return self.random.choice([f"the {day} of {month}", f"{month} the {day}", f"{month} {day}"])

    def digit_sequence(self) -> str:
        """Three to nine digits, with or without pauses."""
        signs = [self.random.choice(["zero", "oh"]), *self.digits]
        digits = self._draw(signs, self.random.randint(3, 9))
        return self.random.choice([", ", ", ", " "]).join(digits)

    def code(self) -> str:
        """Two to six letters and digits."""
        return ", ".join(self._draw([*ascii_uppercase, *self.digits], self.random.randint(2, 6)))

    def _draw(self, signs: list[str], count: int) -> list[str]:
        return [self.random.choice(signs) for _ in range(count)]
