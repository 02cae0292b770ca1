"""Captions of sound events: the sounding thing is named, its class is kept, and labels that say nothing give none."""

import json
import re

import pytest
from conftest import SHARED

from recipes.salmonn_smol.sound_captions import (
    CLASS_PHRASES,
    MISLABELLED,
    clean_caption,
    name_sound,
    names_class,
    plain_label,
)


CORPUS = SHARED / "corpus" / "train" / "metadata.jsonl"


@pytest.mark.parametrize(
    ("label", "sound_class", "noun"),
    [
        ("Dog 02 bark", None, "dog"),
        ("animal: horse idle", "horse", "horse"),
        ("weapon: swordhit 12b", "sword or metal clash", "sword"),
        ("footsteps: footstep gravel running", "footsteps", "gravel"),
        ("human female die", "scream or pain", "woman"),
        ("weapons: bullet smg 15x", "gunshot", "submachine gun"),
        ("bus", "motor vehicle", "motor vehicle"),
        ("grenade bounce", None, "grenade"),
        ("fire: sz", None, "fire"),
        ("throwing knife miss", None, "blade"),
    ],
)
def test_clean_caption_names_the_sounding_thing(label: str, sound_class: str | None, noun: str) -> None:
    caption = clean_caption(label, sound_class)

    assert caption is not None
    assert noun in caption
    assert caption[0].isupper()
    assert caption.endswith(".")


@pytest.mark.parametrize("label", ["Sfx 12", "", "03", "lplus", "r 1535slow"])
def test_clean_caption_of_a_meaningless_label_is_none(label: str) -> None:
    assert clean_caption(label) is None


@pytest.mark.parametrize("sound_class", sorted(CLASS_PHRASES))
def test_clean_caption_keeps_the_class_when_the_label_says_nothing(sound_class: str) -> None:
    caption = clean_caption("Sfx 12", sound_class)

    assert caption is not None
    assert names_class(caption, sound_class)


def test_clean_caption_drops_a_class_that_the_label_contradicts() -> None:
    caption = clean_caption("siege: ram attack", "sheep or goat")

    assert caption is not None
    assert "battering ram" in caption
    assert "sheep" not in caption


def test_clean_caption_is_the_same_for_the_same_label() -> None:
    assert clean_caption("animal: pig", "pig") == clean_caption("animal: pig", "pig")


def test_clean_caption_of_a_sentence_is_the_sentence() -> None:
    assert clean_caption("You can hear a bird: a crow.", "bird") == "You can hear a bird: a crow."


def test_sentences_vary_with_the_label_but_keep_the_phrase() -> None:
    captions = [clean_caption(f"dog {key} bark", "dog or wolf") or "" for key in range(40)]

    assert len(set(captions)) > 1
    assert all("a dog barking" in caption.lower() for caption in captions)


@pytest.mark.skipif(not CORPUS.exists(), reason="needs the corpus in the shared folder")
def test_captions_of_the_corpus_cover_its_labels_and_keep_their_classes() -> None:
    rows = [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    events = [(plain_label(row["text"]), row.get("sound_class")) for row in rows if row["kind"] == "event"]
    phrases = [(label, sound_class, name_sound(label, sound_class)) for label, sound_class in events]

    assert sum(phrase is not None for *_, phrase in phrases) > 0.8 * len(phrases)
    for label, sound_class, phrase in phrases:
        if sound_class and not any(re.search(pattern, label) for pattern in MISLABELLED):
            assert phrase is not None, label
            assert names_class(phrase, sound_class), (label, phrase)
