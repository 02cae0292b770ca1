"""Everyday phrases, numbers, times, codes and spelled words, composed from templates and written as spoken."""

import re
from collections.abc import Iterator
from random import Random


SMALL_NUMBERS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
IRREGULAR_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _read_slots(lines: str) -> dict[str, list[str]]:
    """Read lines of "name: value, value"; a name may have several lines."""
    slots: dict[str, list[str]] = {}
    for line in lines.strip().splitlines():
        name, _, values = line.partition(": ")
        slots.setdefault(name, []).extend(values.split(", "))
    return slots


SLOTS = _read_slots("""
room: kitchen, bedroom, hall, garage, bathroom, garden, living room, office, cellar, attic, dining room, nursery
device: light, lamp, fan, heater, radio, television, oven, kettle, alarm, music, speaker, heating, dishwasher
device: printer
place: bakery, chemist, station, bank, library, museum, hospital, petrol station, post office, supermarket
place: beach, bus stop, hotel, restaurant, car park, airport, school, swimming pool, market, town hall, dentist
place: bookshop
person: Anna, my brother, Michael, the doctor, Sarah, my mother, Peter, my boss, Emma, the landlord, Daniel
person: Grandma, Robert, my sister, Olivia, the plumber, James, our neighbour, Maria, Mister Walker
person: Missus Bell, Thomas, Laura, uncle George
food: bread, soup, rice, cheese, pancakes, an apple, noodles, tomato salad, scrambled eggs, pizza
food: roast chicken, porridge, a sandwich, fish and chips, a bowl of cherries, lentils, carrots, chocolate cake
food: fried potatoes, mushrooms
drink: tea, coffee, water, orange juice, milk, lemonade, hot chocolate, apple juice, mineral water, cider
thing: umbrella, keys, wallet, coat, bicycle, suitcase, glasses, ticket, camera, notebook, gloves, passport
thing: phone, scissors, hat, guitar, backpack, torch, blanket, newspaper
genre: jazz, rock, blues, folk songs, piano music, opera, country music, dance music, a lullaby, some Mozart
genre: hip hop, classical guitar, film music, reggae, a waltz
chore: water the plants, feed the cat, pay the rent, take out the rubbish, call the bank, buy stamps
chore: wash the car, book a table, clean the windows, walk the dog, return the library books, mend the fence
chore: send the parcel, do the laundry, post the letter, defrost the freezer, sweep the stairs, iron the shirts
when: today, tomorrow, tonight, next week, on Friday, this evening, after lunch, in an hour, before dinner
when: on Sunday, tomorrow morning, at noon, at the weekend, in a minute, on Tuesday afternoon, later
weather: rain, snow, wind, thunder, fog, frost, sunshine, hail, drizzle
animal: dog, cat, horse, cow, sheep, parrot, rabbit, goose, frog, donkey, owl, mouse, goat, fox, squirrel
animal: hedgehog
colour: red, blue, green, yellow, black, white, brown, grey, purple, golden, pink, silver
feeling: tired, happy, hungry, cold, worried, excited, bored, angry, thirsty, lucky, nervous, proud, lonely
feeling: sleepy
sound: a knock, footsteps, a siren, music, a bell, somebody laughing, a dog barking, breaking glass, an engine
sound: thunder, a whistle, children playing, running water, a door closing, applause, a helicopter, birds
part: in the morning, in the afternoon, in the evening, at night
unit: metres, miles, kilograms, litres, pounds, inches, hours, days, weeks, minutes, seconds, degrees, percent
unit: pages, grams, feet, gallons, steps, kilometres, tons, years
money: dollars, euros, pounds, cents, francs, pence
month: January, February, March, April, May, June, July, August, September, October, November, December
day: Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday
""")

# Slots without a line above are numbers and their like, which `Phrases` composes.
TEMPLATES = """
Turn on the {device} in the {room}.
Turn off the {device} in the {room}, will you?
Please switch the {device} off.
Is the {device} still on?
Make the {device} a little louder.
Set the heating to {degrees} degrees.
Play {genre}.
Could you play {genre} in the {room}?
Stop the music.
Next song, please.
I would rather hear {genre}.
Where is the nearest {place}?
How far is it to the {place}?
Take me to the {place}.
The {place} is closed on {day}.
Is there a {place} near here?
Turn left after the {place}.
We met in front of the {place}.
The {place} opens at {hour}.
Call {person}.
Send a message to {person}.
Tell {person} that I will be late.
Have you seen {person} {when}?
{person} is waiting outside.
When does {person} arrive?
{person} bought a {colour} {animal}.
Say hello to {person}.
I would like {food} and {drink}.
Do we have any {drink} left?
{person} does not like {food}.
A cup of {drink}, please.
Add {drink} to the shopping list.
How long does it take to make {food}?
This {drink} tastes strange.
Where did I put my {thing}?
Is this your {thing}?
Somebody left a {thing} in the {room}.
Do not forget your {thing}.
My {thing} is {colour}.
I lost my {thing} near the {place}.
Put the {thing} in the {room}.
Remind me to {chore} {when}.
Did you {chore}?
We have to {chore} {when}.
I forgot to {chore}.
Who wants to {chore}?
Will there be {weather} {when}?
The {weather} will not last.
There was {weather} all over the coast.
I can hear {sound}.
Did you hear {sound}?
What was that, {sound}?
It sounds like {sound}.
We heard {sound} and {sound}.
The {animal} is asleep in the {room}.
I saw a {colour} {animal} {when}.
Why is the {animal} so {feeling}?
The {animal} chased the {animal}.
I am {feeling}.
Are you {feeling}?
{person} looks {feeling}.
Do not be so {feeling}.
Set an alarm for {clock}.
Wake me at {clock}.
Set a timer for {count} minutes.
It is {clock}.
The train leaves at {clock}.
We meet at {clock} {part}.
It was {clock} when {person} called.
{clock} {part}.
{clock}.
{date}.
Today is {day}, {date}.
My birthday is on {date}.
The meeting is on {day}, {date}, at {clock}.
{date}, {year}.
It was built in {year}.
The story begins in {month}, {year}.
She was born on {date}, {year}.
Number {number}.
{number} {unit}.
{number} {unit}.
It is {count} {unit} long.
That makes {number} {money}.
{count} {money} and {count} cents.
It costs {count} {money}.
{count} point {digit} {digit}.
{count} point {digit} {unit}.
{count} percent.
There were {number} people at the {place}.
Only {count} {unit} to go.
Page {count}.
Room {count}, please.
{count} plus {count}.
{count} minus {count}.
{count} times {count} equals {number}.
{count} divided by {digit}.
The {ordinal} of {month}.
The {ordinal} door on the left.
She finished in {ordinal} place.
{ordinal}, please.
{digits}.
{digits}.
{digits}.
My number is {digits}.
The code is {digits}.
Dial {digits}.
{mixture}.
{mixture}.
The registration is {mixture}.
Flight {mixture} is delayed.
Your reference is {mixture}.
""".strip().splitlines()


def spell_number(number: int) -> str:
    """Say a number below a million: `spell_number(2041)` is "two thousand and forty one"."""
    if number < 20:
        return SMALL_NUMBERS[number]
    if number < 100:
        return TENS[number // 10 - 2] + (f" {SMALL_NUMBERS[number % 10]}" if number % 10 else "")
    size, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    head, rest = divmod(number, size)
    joint = " and " if 0 < rest < 100 else " "
    return f"{spell_number(head)} {name}" + (joint + spell_number(rest) if rest else "")


def spell_ordinal(number: int) -> str:
    """Say an ordinal below a million: `spell_ordinal(23)` is "twenty third"."""
    head, space, last = spell_number(number).rpartition(" ")
    regular = last[:-1] + "ieth" if last.endswith("y") else last + "th"
    return head + space + IRREGULAR_ORDINALS.get(last, regular)


def spell_year(year: int) -> str:
    """Say a year from 1100 to 2099: `spell_year(1984)` is "nineteen eighty four"."""
    century, rest = divmod(year, 100)
    if century == 20 and rest < 10:
        return spell_number(year)
    if rest == 0:
        return f"{spell_number(century)} hundred"
    return f"{spell_number(century)} {'oh ' if rest < 10 else ''}{spell_number(rest)}"


class Phrases:
    """Composes everyday phrases, numbers, codes and spelled words from templates, without end.

    Args:
        words (`list[str]`): Words to spell letter by letter.
        seed (`int`): Seed of the choices.
    """

    def __init__(self, words: list[str], seed: int) -> None:
        self.random = Random(f"{seed} phrases")
        self.words = [word for word in words if len(word) <= 7]

    def __iter__(self) -> Iterator[str]:
        while True:
            yield self.spelled_word() if self.random.random() < 0.1 else self.filled_template()

    def spelled_word(self) -> str:
        """Spell a word: "Harp, H, A, R, P."."""
        word = self.random.choice(self.words)
        return ", ".join([word.capitalize(), *word.upper()]) + "."

    def filled_template(self) -> str:
        """Fill a template's slots with different values."""
        text = re.sub(r"\{(\w+)\}", lambda slot: self._value(slot[1]), self.random.choice(TEMPLATES))
        return text[0].upper() + text[1:]

    def _value(self, slot: str) -> str:
        """Choose a value for a slot."""
        return self.random.choice(SLOTS[slot]) if slot in SLOTS else getattr(self, f"_{slot}")()

    def _number(self) -> str:
        return spell_number(int(10 ** self.random.uniform(0, 5.5)))  # all magnitudes alike

    def _count(self) -> str:
        return spell_number(self.random.randint(2, 99))

    def _degrees(self) -> str:
        return spell_number(self.random.randint(5, 30))

    def _digit(self) -> str:
        return spell_number(self.random.randint(1, 9))

    def _hour(self) -> str:
        return spell_number(self.random.randint(1, 12))

    def _ordinal(self) -> str:
        return spell_ordinal(self.random.randint(1, 31))

    def _year(self) -> str:
        return spell_year(self.random.randint(1400, 2035))

    def _clock(self) -> str:
        """Say a time of day in one of the usual ways."""
        hour, minute = self._hour(), self.random.randint(1, 59)
        before = self.random.choice(["five", "ten", "twenty"])
        relative = ("half past", "a quarter to", "a quarter past", f"{before} to")
        digital = f"{hour} {'oh ' if minute < 10 else ''}{spell_number(minute)}"
        return self.random.choice([f"{hour} o'clock", f"{self.random.choice(relative)} {hour}", digital])

    def _date(self) -> str:
        """Say a day of the year."""
        month, day = self.random.choice(SLOTS["month"]), self._ordinal()
        return self.random.choice([f"the {day} of {month}", f"{month} the {day}", f"{month} {day}"])

    def _digits(self) -> str:
        """Read out three to nine digits, with or without pauses."""
        zero = self.random.choice(["zero", "oh"])
        digits = [self.random.choice([zero, *SMALL_NUMBERS[1:10]]) for _ in range(self.random.randint(3, 9))]
        return self.random.choice([", ", ", ", " "]).join(digits)

    def _mixture(self) -> str:
        """Read out two to six letters and digits."""
        signs = [*LETTERS, *SMALL_NUMBERS[1:10]]
        return ", ".join(self.random.choice(signs) for _ in range(self.random.randint(2, 6)))
