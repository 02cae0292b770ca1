"""Words spelled in frequent pieces: nothing is lost, and no piece is rare."""

import pickle
from collections import Counter

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from modeling_salmonn.data.alignment_labels import alignment_labels
from modeling_salmonn.data.word_pieces import WordPieces, frequent_pieces


MIN_COUNT = 20
TEXTS = [
    *["the dog walks and the bird is singing"] * 30,
    *["a cat is walking and they talk"] * 30,
    *["walk on talking dog"] * 30,
    "nobody talked or sang",  # of which no word but `or` has a frequent beginning and end
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One whose vocabulary has each of the words as a whole."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        [f" {text}" for text in TEXTS], trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.fixture(scope="module")
def pieces(tokenizer: PreTrainedTokenizerFast) -> WordPieces:
    return frequent_pieces(TEXTS, tokenizer, MIN_COUNT)


def test_frequent_words_are_single_pieces(tokenizer: PreTrainedTokenizerFast, pieces: WordPieces) -> None:
    for word in ("dog", "walking", "the"):
        assert pieces.encode(word) == tokenizer(f" {word}")["input_ids"]
        assert len(pieces.encode(word)) == 1


def test_rare_word_is_spelled_in_frequent_pieces(tokenizer: PreTrainedTokenizerFast, pieces: WordPieces) -> None:
    assert len(tokenizer(" talked")["input_ids"]) == 1
    spelled = tokenizer.convert_ids_to_tokens(pieces.encode("talked"))
    assert "".join(spelled) == "Ġtalked"
    assert spelled[0] == "Ġtalk"


def test_every_piece_but_letters_is_frequent(tokenizer: PreTrainedTokenizerFast, pieces: WordPieces) -> None:
    used = Counter(token for text in TEXTS for token in pieces.encode(text))
    long = [token for token in pieces.scores if len(tokenizer.convert_ids_to_tokens(token)) > 1]
    assert len(long) >= 8
    assert min(used[token] for token in long) >= MIN_COUNT
    assert set(used) <= set(pieces.scores)


@pytest.mark.parametrize("text", ["nobody walks", "thinking", "a talking bird sang on"])
def test_text_of_known_letters_is_read_back(tokenizer: PreTrainedTokenizerFast, pieces: WordPieces, text: str) -> None:
    assert tokenizer.decode(pieces.encode(text)) == f" {text}"
    assert set(pieces.encode(text)) <= set(pieces.scores)


def test_word_of_unknown_letters_keeps_the_tokenizers_spelling(
    tokenizer: PreTrainedTokenizerFast, pieces: WordPieces
) -> None:
    assert pieces.encode("Žofie") == tokenizer(" Žofie")["input_ids"]


@pytest.mark.parametrize("byte_fallback", [True, False], ids=["bytes", "unknown"])
def test_word_with_a_letter_that_the_alphabet_lacks_keeps_the_tokenizers_spelling(byte_fallback: bool) -> None:
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghijklmnopqrstuvwxyzABCDEF0123456789<>"]
    vocabulary = {name: index for index, name in enumerate([*names, "▁g"])}
    options = {"unk_token": "<unk>", "byte_fallback": byte_fallback}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "g")], **options))
    backend.normalizer = normalizers.Replace(" ", "▁")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    pieces = frequent_pieces([*["go gas"] * 30, "gőz ax"], tokenizer, MIN_COUNT)
    letter = ["<0xC5>", "<0x91>"] if byte_fallback else ["<unk>"]
    assert tokenizer.convert_ids_to_tokens(pieces.encode("gőz")) == ["▁g", *letter, "z"]
    assert tokenizer.convert_ids_to_tokens(pieces.encode("gas")) == ["▁g", "a", "s"]
    assert {"<", ">", "0", "C", "5"}.isdisjoint(tokenizer.convert_ids_to_tokens(list(pieces.scores)))


def test_nothing_is_spelled_as_nothing(tokenizer: PreTrainedTokenizerFast, pieces: WordPieces) -> None:
    assert pieces.encode("  ") == []
    assert frequent_pieces([], tokenizer, MIN_COUNT).encode("dog") == tokenizer(" dog")["input_ids"]


def test_worker_processes_spell_alike(pieces: WordPieces) -> None:
    copy = pickle.loads(pickle.dumps(pieces))
    assert copy.scores == pieces.scores
    assert copy.encode("talked nobody") == pieces.encode("talked nobody")


def test_what_is_written_spells_alike(tokenizer: PreTrainedTokenizerFast, pieces: WordPieces) -> None:
    again = WordPieces.from_json(tokenizer, pieces.to_json())
    assert again.scores == pieces.scores
    assert again.encode("talked nobody") == pieces.encode("talked nobody")


def test_labels_spell_what_is_said_alone(tokenizer: PreTrainedTokenizerFast, pieces: WordPieces) -> None:
    rows = [{"alignment_text": "talked"}, {"alignment_words": "talked"}]
    labels = alignment_labels(rows, tokenizer, pieces)
    assert labels["alignment_labels"][0].tolist() == pieces.encode("talked")
    assert labels["bag_labels"][1].tolist() == tokenizer(" talked")["input_ids"]
