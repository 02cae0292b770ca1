"""Spells words in pieces of a vocabulary that are frequent in some texts.

A window of audio can only be taught a word piece by clips that have it, and most words of a language are rare in any
training data. The language model's tokenizer has a piece of its own for nearly every word; spelled in pieces that are
all frequent, a word that no clip has can be read too.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase


LONGEST_PIECE = 16  # characters
ROUNDS = 6  # of spelling the words and dropping pieces; few pieces go in later ones
UNKNOWN = ("<unknown>", -100.0)
BYTE = re.compile("<0x[0-9A-F]{2}>")  # a part of a letter that the vocabulary lacks, in the tokenizers of LLaMA


class WordPieces:
    """Splits words into pieces of a vocabulary, each the likeliest way.

    Args:
        tokenizer: the language model's, whose vocabulary the pieces are of.
        scores: of each piece, by its token id: the logarithm of how often it is used.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, scores: Mapping[int, float]):
        self.tokenizer = tokenizer
        self.scores = dict(scores)
        names = tokenizer.convert_ids_to_tokens(list(scores))
        self._model = Tokenizer(models.Unigram([UNKNOWN, *zip(names, scores.values(), strict=True)], 0))
        self._ids: dict[str, list[int]] = {}  # of words that were asked for

    @classmethod
    def from_json(cls, tokenizer: PreTrainedTokenizerBase, text: str) -> "WordPieces":
        """Those that `to_json` wrote."""
        return cls(tokenizer, {int(token): score for token, score in json.loads(text).items()})

    def to_json(self) -> str:
        """The scores, by token id."""
        return json.dumps(self.scores)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text's words."""
        return [token for word in text.split() for token in self._encode_word(word)]

    def split(self, spelled: str) -> list[str]:
        """Pieces of one word, which is in the vocabulary's alphabet."""
        pieces: list[str] = self._model.encode(spelled).tokens
        return pieces

    def _encode_word(self, word: str) -> list[int]:
        if word not in self._ids:
            own = own_ids(word, self.tokenizer)
            spelled = spell(word, self.tokenizer)
            ids = own if spelled is None else self.tokenizer.convert_tokens_to_ids(self.split(spelled))
            # A letter that the texts or the alphabet lack has no piece: the tokenizer's own are better than a gap.
            self._ids[word] = ids if self.scores.keys() >= set(ids) else own
        return self._ids[word]


def frequent_pieces(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, min_count: int) -> WordPieces:
    """The pieces that some texts, spelled in them, use at least `min_count` times; letters stay, however rare."""
    words: Counter[str] = Counter()
    for word, count in Counter(word for text in texts for word in text.split()).items():
        spelled = spell(word, tokenizer)
        if spelled is not None:
            words[spelled] += count
    vocabulary = tokenizer.get_vocab()
    counts: Mapping[str, int] = _count_substrings(words, vocabulary)
    for _ in range(ROUNDS):
        kept = {piece: count for piece, count in counts.items() if count >= min_count or len(piece) == 1}
        pieces = WordPieces(tokenizer, _scores(kept, vocabulary))
        used: Counter[str] = Counter()
        for word, count in words.items():
            for piece in pieces.split(word):
                used[piece] += count
        counts = {piece: used[piece] for piece in kept}
    return pieces


def spell(word: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A word in the alphabet of a vocabulary, which marks where it begins; `None` if the alphabet lacks a letter."""
    names = tokenizer.convert_ids_to_tokens(own_ids(word, tokenizer))
    lacks_letter = any(name == tokenizer.unk_token or BYTE.fullmatch(name) for name in names)
    return None if lacks_letter else "".join(names)


def own_ids(words: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids in a tokenizer's own pieces: those that words have inside a sentence, whatever their place."""
    ids: list[int] = tokenizer(f" {words}", add_special_tokens=False)["input_ids"] if words else []
    return ids


def _count_substrings(words: Mapping[str, int], vocabulary: Mapping[str, int]) -> Counter[str]:
    """How often each piece of the vocabulary is a part of a word."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(len(word)):
            for end in range(start + 1, min(len(word), start + LONGEST_PIECE) + 1):
                piece = word[start:end]
                if piece in vocabulary:
                    counts[piece] += count
    return counts


def _scores(counts: Mapping[str, int], vocabulary: Mapping[str, int]) -> dict[int, float]:
    total = max(1, sum(counts.values()))
    # A letter that is used in no spelling now may be needed for other words.
    return {vocabulary[piece]: math.log(max(count, 0.5) / total) for piece, count in counts.items()}
