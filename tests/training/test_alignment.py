"""The alignment loss: what it asks of audio tokens, and that a warm start teaches it."""

import math
from pathlib import Path

import pytest
import soundfile
import torch
from byte_tokenizer import byte_tokenizer
from conftest import SAMPLING_RATE, make_clip, tiny_config, tiny_model, tiny_processor
from transformers import TrainingArguments

from modeling_salmonn import SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.data.alignment_labels import alignment_labels
from modeling_salmonn.data.encoder_cache import EncoderCache
from modeling_salmonn.data.word_pieces import WordPieces
from modeling_salmonn.training.alignment import AlignmentHead, ConnectorAligner
from modeling_salmonn.training.warm_start import warm_start


NONE = torch.full((1, 1), -100)


@pytest.fixture
def embedding() -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(40, 16, generator=torch.Generator().manual_seed(0)))


def speak(head: AlignmentHead, embedding: torch.Tensor, words: list[int | None]) -> torch.Tensor:
    """Audio tokens that are the embeddings of words, or the blank."""
    return torch.stack([head.blank if word is None else embedding[word] for word in words])


def aligned_head(embedding: torch.Tensor) -> AlignmentHead:
    head = AlignmentHead(embedding, negatives=300)
    with torch.no_grad():
        head.blank.copy_(
            torch.nn.functional.normalize(torch.randn(16, generator=torch.Generator().manual_seed(1)), dim=0)
        )
        head.log_scale.fill_(3.0)
    return head


def head_with_pieces(embedding: torch.Tensor, *ids: int) -> AlignmentHead:
    head = AlignmentHead(embedding, pieces=WordPieces(byte_tokenizer(), dict.fromkeys(ids, -1.0)))
    head.load_state_dict(aligned_head(embedding).state_dict())  # the pieces are no weights
    return head


def test_alignment_loss_is_small_for_the_words_in_order_alone(embedding: torch.Tensor) -> None:
    head = aligned_head(embedding)
    tokens, counts = speak(head, embedding, [None, 5, 5, None, 7]), torch.tensor([5])
    right = head(tokens, counts, torch.tensor([[5, 7]]), NONE, embedding)
    swapped = head(tokens, counts, torch.tensor([[7, 5]]), NONE, embedding)
    assert right < 0.1 < 5 < swapped


def test_bag_loss_takes_the_words_in_any_order() -> None:
    embedding = torch.eye(16)  # words that are nothing alike
    head = aligned_head(embedding)
    tokens, counts = speak(head, embedding, [5, 5, 7, 7]), torch.tensor([4])
    forward = head(tokens, counts, NONE, torch.tensor([[5, 7]]), embedding)
    backward = head(tokens, counts, NONE, torch.tensor([[7, 5]]), embedding)
    torch.testing.assert_close(forward, backward)
    half_each = math.log(2)
    assert half_each < forward < half_each + 0.2 < 4 < head(tokens, counts, NONE, torch.tensor([[9, 9]]), embedding)


def test_bag_loss_gathers_weak_evidence_of_all_windows(embedding: torch.Tensor) -> None:
    head = aligned_head(embedding)
    others = [embedding[index] for index in range(10, 20)]
    weak = torch.stack([0.5 * embedding[5] + 0.5 * other for other in others])  # no window names it for certain
    strong = torch.stack([embedding[5], *others[1:]])  # one window does
    one_word = torch.tensor([[5]])
    assert head(weak, torch.tensor([10]), NONE, one_word, embedding) < 0.1
    assert head(strong, torch.tensor([10]), NONE, one_word, embedding) > 0.5


def test_alignment_loss_of_a_batch_is_that_of_its_clips(embedding: torch.Tensor) -> None:
    head = aligned_head(embedding)
    torch.manual_seed(0)
    tokens = torch.randn(9, 16)
    labels, bags = torch.tensor([[5, 7], [-100, -100]]), torch.tensor([[-100, -100, -100], [1, 2, 3]])
    every = torch.arange(40).unique()
    head._sample_vocabulary = lambda *_: every  # type: ignore[method-assign]  the same competitors for all
    batch = head(tokens, torch.tensor([6, 3]), labels, bags, embedding)
    first = head(tokens[:6], torch.tensor([6]), labels[:1], bags[:1], embedding)
    second = head(tokens[6:], torch.tensor([3]), labels[1:], bags[1:], embedding)
    torch.testing.assert_close(batch, (2 * first + 3 * second) / 5)


def test_greedy_reading_removes_repeats_and_blanks(embedding: torch.Tensor) -> None:
    head = aligned_head(embedding)
    tokens = speak(head, embedding, [5, 5, None, 5, 7, 3, None])
    assert head.greedy(tokens, torch.tensor([5, 2]), embedding) == [[5, 5, 7], [3]]


def test_head_with_pieces_reads_nothing_else(embedding: torch.Tensor) -> None:
    head = head_with_pieces(embedding, 3, 7, 9)
    tokens = speak(head, embedding, [9, None, 7, 7, 3, 5])
    heard, last = (head.greedy(tokens, torch.tensor([6]), embedding)[0][place] for place in (slice(0, 3), -1))
    assert heard == [9, 7, 3]
    assert last in (3, 7, 9)


def test_pieces_compete_beside_the_targets(embedding: torch.Tensor) -> None:
    head = head_with_pieces(embedding, 3, 7, 9)
    tokens, counts = speak(head, embedding, [5, None]), torch.tensor([2])
    first, again = (head(tokens, counts, torch.tensor([[5]]), NONE, embedding) for _ in range(2))
    assert first == again < 0.1  # nothing is drawn at random
    assert head(tokens, counts, torch.tensor([[7]]), NONE, embedding) > 5


def test_batch_without_targets_gives_zero(embedding: torch.Tensor) -> None:
    head = aligned_head(embedding)
    loss = head(torch.randn(3, 16), torch.tensor([3]), NONE, NONE, embedding)
    assert loss == 0


def test_labels_are_words_as_inside_a_sentence(bucket_processor: SalmonnProcessor) -> None:
    rows = [{"alignment_text": "a dog"}, {"alignment_words": "cat"}, {}]
    labels = alignment_labels(rows, bucket_processor.tokenizer)
    expected = bucket_processor.tokenizer(" a dog", add_special_tokens=False)["input_ids"]
    assert labels["alignment_labels"][0].tolist() == expected
    assert labels["alignment_labels"][1:].eq(-100).all()
    assert (
        labels["bag_labels"][1].tolist() == bucket_processor.tokenizer(" cat", add_special_tokens=False)["input_ids"]
    )


def test_aligner_trains_the_connector_alone() -> None:
    model = tiny_model(tiny_config(), lora=True)
    aligner = ConnectorAligner(model, AlignmentHead(model.get_input_embeddings().weight))
    trained = {name.split(".")[1] for name, _ in aligner.named_parameters() if name.startswith("connector.")}
    assert trained == {"ln_speech", "ln_audio", "qformer", "projector"}
    assert {name for name, _ in aligner.named_parameters() if name.startswith("head.")} == {
        "head.blank",
        "head.log_scale",
    }


def test_warm_start_teaches_clips_by_heart(tmp_path: Path) -> None:
    config = tiny_config(
        segment_seconds=[2, 5, 10, 30], trim_audio_tokens=True, window_seconds=0.1, stride_seconds=0.1
    )
    model: SalmonnForConditionalGeneration = tiny_model(config)
    processor = tiny_processor(config)
    rows = []
    for index, word in enumerate(("one", "two", "six")):
        path = tmp_path / f"{word}.wav"
        soundfile.write(path, make_clip(1.0, seed=7 * index), SAMPLING_RATE)
        rows.append({"path": str(path), "alignment_text": word})
    cache = EncoderCache(tmp_path / "cache", model, processor.feature_extractor)
    arguments = TrainingArguments(
        str(tmp_path / "run"), max_steps=250, learning_rate=1e-2, per_device_train_batch_size=3, use_cpu=True,
        report_to=[], save_strategy="no", remove_unused_columns=False, disable_tqdm=True, label_names=[],
    )  # fmt: skip
    frozen = {name: value.clone() for name, value in model.state_dict().items() if "encoder" in name}
    head = AlignmentHead(model.get_input_embeddings().weight)
    trainer = warm_start(model, head, cache, processor.tokenizer, rows, rows, arguments)
    losses = [entry["train_loss"] for entry in trainer.state.log_history if "train_loss" in entry]
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] < 0.5 < losses[0]
    capitals = [row | {"alignment_text": row["alignment_text"].upper()} for row in rows]
    assert trainer.evaluate(capitals)["eval_wer"] == metrics["eval_wer"] < 1
    assert all(torch.equal(model.state_dict()[name], value) for name, value in frozen.items())
