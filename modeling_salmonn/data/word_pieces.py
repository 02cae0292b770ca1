"""Spells words in pieces of a vocabulary that are frequent in some texts.

A window of audio can only be taught a word piece by clips that have it, and most words of a language are rare in any
training data. The language model's tokenizer has a piece of its own for nearly every word; spelled in pieces that are
all frequent, a word that no clip has can be read too.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase


LONGEST_PIECE = 16  # characters
ROUNDS = 6  # of spelling the words and dropping pieces; few pieces go in later ones
UNKNOWN, UNKNOWN_SCORE = "<unknown>", -100.0


class WordPieces:
    """Splits words into pieces that occur at least `min_count` times in some texts, split that way.

    Of the ways to spell a word the likeliest one is taken, by the counts of its pieces. Letters stay, however rare.

    Args:
        texts: what the pieces are counted in.
        tokenizer: the language model's, whose vocabulary the pieces are of.
        min_count: of a piece.
    """

    def __init__(self, texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, min_count: int):
        self.tokenizer = tokenizer
        self.min_count = min_count
        self._ids: dict[str, list[int]] = {}  # of words that were asked for
        words = Counter(word for text in texts for word in text.split())
        spelled: Counter[str] = Counter()
        for word, count in words.items():
            spelled[self._spell(word)] += count
        self._model, kept = self._choose(spelled)
        self.ids = sorted(tokenizer.convert_tokens_to_ids(list(kept)))  # of all pieces

    def encode(self, text: str) -> list[int]:
        """Token ids of a text's words."""
        return [token for word in text.split() for token in self._encode_word(word)]

    def _encode_word(self, word: str) -> list[int]:
        if word not in self._ids:
            pieces = self._model.encode(self._spell(word)).tokens
            ids = self.tokenizer.convert_tokens_to_ids(pieces)
            known = set(self.ids)
            # A letter that the texts lack has no piece: the tokenizer's own spelling is better than a gap.
            self._ids[word] = ids if known.issuperset(ids) else self._own_ids(word)
        return self._ids[word]

    def _own_ids(self, word: str) -> list[int]:
        # With a leading space, words have the ids that they have inside a sentence.
        ids: list[int] = self.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        return ids

    def _spell(self, word: str) -> str:
        """A word in the vocabulary's alphabet, which marks where it begins."""
        return "".join(self.tokenizer.convert_ids_to_tokens(self._own_ids(word)))

    def _choose(self, words: Mapping[str, int]) -> tuple[Tokenizer, Mapping[str, int]]:
        """Drop the pieces that the likeliest spellings of all words use too seldom, a few times over."""
        kept = {piece: count for piece, count in self._candidates(words).items() if self._stays(piece, count)}
        model = unigram_model(kept)
        for _ in range(ROUNDS):
            used: Counter[str] = Counter()
            for word, count in words.items():
                for piece in model.encode(word).tokens:
                    used[piece] += count
            kept = {piece: used[piece] for piece in kept if self._stays(piece, used[piece])}
            model = unigram_model(kept)
        return model, kept

    def _candidates(self, words: Mapping[str, int]) -> Counter[str]:
        """How often each piece of the vocabulary is a part of a word."""
        vocabulary = self.tokenizer.get_vocab()
        counts: Counter[str] = Counter()
        for word, count in words.items():
            for start in range(len(word)):
                for end in range(start + 1, min(len(word), start + LONGEST_PIECE) + 1):
                    piece = word[start:end]
                    if piece in vocabulary:
                        counts[piece] += count
        return counts

    def _stays(self, piece: str, count: int) -> bool:
        return count >= self.min_count or len(piece) == 1


def unigram_model(counts: Mapping[str, int]) -> Tokenizer:
    """Splits a word the likeliest way, given how often each piece was used."""
    total = max(1, sum(counts.values()))
    # A letter that was never used still has to be able to spell a word.
    scored = [(piece, math.log(max(count, 0.5) / total)) for piece, count in counts.items()]
    return Tokenizer(models.Unigram([(UNKNOWN, UNKNOWN_SCORE), *scored], 0))
