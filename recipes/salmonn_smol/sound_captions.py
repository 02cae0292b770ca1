"""Plain captions for sound events: rules that turn short labels, made from file names, into English sentences.

- a rule finds a pattern in the label and gives a phrase that names the sounding thing
- the phrase keeps a word of the sound's class; if no rule does, the class alone gives the phrase
- labels that name nothing one can hear give no caption; labels that are sentences stay as they are
"""

import re
import zlib
from pathlib import Path

from modeling_salmonn.data.text_files import read_yaml_mapping


TABLE, _ = read_yaml_mapping(Path(__file__).with_name("sound_captions.yaml"), "table")
CLASS_PHRASES: dict[str, str] = TABLE["class_phrases"]
MISLABELLED: list[str] = TABLE["mislabelled"]
SPOKEN_WORDS: dict[str, str] = TABLE["spoken_words"]
SENTENCES = ("{0}.", "The sound of {0}.", "This is the sound of {0}.", "You can hear {0}.")
WHOLE_PHRASE = re.compile(r"(a|an|the)? ?[a-z' ]* ?\b[a-z]{2,}ing( [a-z]+)?")  # "a dog barking", "water being poured"
VOWELS = tuple("aeiou")
CONSONANT_SOUND = ("uni", "eu", "one")  # spelled with a vowel, spoken with a consonant


def _with_alternatives(pattern: str) -> str:
    """A pattern of the table with its words in place of `<guns>` and the like."""
    for name, words in TABLE["alternatives"].items():
        pattern = pattern.replace(f"<{name}>", "|".join(words))
    return pattern


RULES = [(_with_alternatives(pattern), phrase) for pattern, phrase in TABLE["rules"].items()]


def clean_caption(text: str, sound_class: str | None = None) -> str | None:
    """A plain English caption for a sound event's label.

    Args:
        text: the label, such as `"animal: horse idle"` or `"Dog 02 bark"`.
        sound_class: the sound's class, such as `"dog or wolf"`.

    Returns:
        A sentence that names the sounding thing, the same for the same label; `None` if both name nothing.
    """
    if re.fullmatch(r"[A-Z].* .*\.", text):
        return text
    phrase = name_sound(plain_label(text), sound_class)
    if phrase is None:
        return None
    sentence = SENTENCES[zlib.crc32(text.encode()) % len(SENTENCES)].format(phrase)
    return sentence[0].upper() + sentence[1:]


def name_sound(label: str, sound_class: str | None) -> str | None:
    """A phrase for a label and a class."""
    if any(re.search(pattern, label) for pattern in MISLABELLED):
        sound_class = None
    phrase = rule_phrase(label)
    if WHOLE_PHRASE.fullmatch(label) and sound_class is not None and names_class(label, sound_class):
        return label
    if sound_class is None or (phrase is not None and names_class(phrase, sound_class)):
        return phrase
    return CLASS_PHRASES.get(sound_class, with_article(sound_class))


def rule_phrase(label: str) -> str | None:
    """The phrase of the first rule that fits, with what its pattern's group found."""
    for pattern, phrase in RULES:
        if found := re.search(pattern, label):
            word = next((group for group in found.groups() if group), "").replace("_", " ")
            word = SPOKEN_WORDS.get(word, word)
            return phrase.replace("{a}", with_article(word)).replace("{0}", word)
    return None


def names_class(phrase: str, sound_class: str) -> bool:
    """Whether a phrase has one of a class' nouns, which stand with `or` between them."""
    return any(noun in phrase.lower() for noun in sound_class.split(" or "))


def plain_label(text: str) -> str:
    """A label in lower case with single spaces, without numbers and signs."""
    words = re.sub(r"[^a-z0-9: ]+", " ", text.lower())
    words = re.sub(r"\b\d+[a-z]?\b", " ", words)
    return " ".join(words.split())


def with_article(noun: str) -> str:
    """A noun with `a` or `an`."""
    article = "an" if noun.startswith(VOWELS) and not noun.startswith(CONSONANT_SOUND) else "a"
    return f"{article} {noun}"
