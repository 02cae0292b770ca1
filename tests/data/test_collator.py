"""Batches of examples, and fine-tuning with nothing but `transformers.Trainer`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SAMPLING_RATE, make_clip, tiny_model
from transformers import Trainer, TrainingArguments

from modeling_salmonn import SalmonnConfig, SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.data.collator import SalmonnCollator


def example(seconds: float | None = 0.5, **options: Any) -> dict[str, Any]:
    audio = None if seconds is None else make_clip(seconds)
    return {"audio": audio, "instruction": "What do you hear?", "answer": "a tone"} | options


def test_batch_is_that_of_the_processor(bucket_processor: SalmonnProcessor) -> None:
    examples = [example(0.5), example(2.5, answer="a longer tone", instruction="Hm?")]
    batch = SalmonnCollator(bucket_processor)(examples)
    expected = bucket_processor(
        text=["What do you hear?", "Hm?"],
        audio=[entry["audio"] for entry in examples],
        sampling_rate=SAMPLING_RATE,
        text_target=["a tone", "a longer tone"],
    )
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], expected[name]) for name in batch)


def test_audio_may_be_a_path(bucket_processor: SalmonnProcessor, wav_file: Path) -> None:
    collator = SalmonnCollator(bucket_processor)
    batches = [collator([example(audio=audio)]) for audio in (str(wav_file), {"path": str(wav_file)})]
    assert torch.equal(batches[0]["input_features"], batches[1]["input_features"])


def test_rows_without_audio_are_text(bucket_processor: SalmonnProcessor) -> None:
    batch = SalmonnCollator(bucket_processor)([example(None), example(0.5)])
    audio_token = bucket_processor.audio_token_id
    assert (batch["input_ids"] == audio_token).sum(1).tolist() == [0, 2]
    assert len(batch["input_features"]) == 1
    text = bucket_processor.tokenizer.decode(batch["input_ids"][0])
    assert "USER:" in text
    assert "Speech" not in text


def test_example_may_have_several_clips(bucket_processor: SalmonnProcessor, wav_file: Path) -> None:
    clips = [make_clip(0.5), str(wav_file), {"array": make_clip(2.5), "sampling_rate": SAMPLING_RATE}]
    batch = SalmonnCollator(bucket_processor)([example(audio=clips), example(0.5), example(audio=[])])
    counts = (batch["input_ids"] == bucket_processor.audio_token_id).sum(1).tolist()
    alone = [SalmonnCollator(bucket_processor)([example(audio=clip)]) for clip in clips]
    lengths = [int((inputs["input_ids"] == bucket_processor.audio_token_id).sum()) for inputs in alone]
    assert counts == [sum(lengths), lengths[0], 0]
    assert len(batch["input_features"]) == len(clips) + 1
    for row, inputs in zip(batch["input_features"], alone, strict=False):
        frames = inputs["input_features"].shape[-1]
        assert torch.equal(row[:, :frames], inputs["input_features"][0])


def test_clips_go_where_their_placeholders_are(bucket_processor: SalmonnProcessor) -> None:
    asked = f"First {bucket_processor.audio_token}, then {bucket_processor.audio_token}: which is louder?"
    clips = [make_clip(0.5), make_clip(1.5)]
    batch = SalmonnCollator(bucket_processor)([example(audio=clips, instruction=asked)])
    expected = bucket_processor(text=[asked], audio=[clips], text_target=["a tone"], sampling_rate=SAMPLING_RATE)
    assert torch.equal(batch["input_ids"], expected["input_ids"])


def test_answer_may_be_empty(bucket_processor: SalmonnProcessor) -> None:
    batch = SalmonnCollator(bucket_processor)([example(answer="")])
    assert batch["labels"][batch["labels"] != -100].tolist() == [bucket_processor.tokenizer.eos_token_id]


@pytest.mark.parametrize("lacking", ["audio", "instruction", "answer"])
def test_example_without_a_column_raises(lacking: str, bucket_processor: SalmonnProcessor) -> None:
    broken = {name: value for name, value in example(sound="a.wav").items() if name != lacking}
    message = rf"Example 1 of the batch lacks '{lacking}': it has \[.*'sound'\]. Rename .* remove_unused_columns=False"
    with pytest.raises(ValueError, match=message):
        SalmonnCollator(bucket_processor)([example(), broken])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": None}, r"Example 0 of the batch has None \(nothing\) as 'answer'; give text"),
        ({"answer": ["a tone"]}, r"has \['a tone'\] \(a list\) as 'answer'; give text"),
        ({"instruction": 3}, r"has 3 \(a number\) as 'instruction'; give text"),
    ],
)
def test_text_of_another_type_raises(changes: Any, message: str, bucket_processor: SalmonnProcessor) -> None:
    with pytest.raises(ValueError, match=message):
        SalmonnCollator(bucket_processor)([example(**changes)])


def test_example_that_is_no_mapping_raises(bucket_processor: SalmonnProcessor) -> None:
    with pytest.raises(ValueError, match=r"Example 0 of the batch is text; it needs to be a mapping with 'audio'"):
        SalmonnCollator(bucket_processor)(["a.wav"])  # type: ignore[list-item]


def test_inputs_of_generation_have_no_answer(bucket_processor: SalmonnProcessor) -> None:
    inputs = SalmonnCollator(bucket_processor).prepare([example(0.5)])
    assert "labels" not in inputs
    assert bucket_processor.tokenizer.decode(inputs["input_ids"][0]).endswith("ASSISTANT:")


@pytest.mark.parametrize("loaded", [False, True], ids=["fresh adapter", "loaded adapter"])
def test_plain_trainer_fine_tunes(
    loaded: bool, bucket_config: SalmonnConfig, bucket_processor: SalmonnProcessor, tmp_path: Path
) -> None:
    """As in a notebook: model, collator and processor, and nothing else."""
    model = tiny_model(bucket_config, lora=loaded)
    if loaded:
        model.save_pretrained(tmp_path / "model")
        model = SalmonnForConditionalGeneration.from_pretrained(tmp_path / "model")
    model.add_lora()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        max_steps=8,
        learning_rate=0.1,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=8,
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    rows = [example(0.3 + 0.2 * index, answer=f"tone {index}") for index in range(4)]
    trainer = Trainer(
        model=model,
        args=arguments,
        data_collator=SalmonnCollator(bucket_processor),
        train_dataset=rows,
        eval_dataset=rows[:2],
        processing_class=bucket_processor,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 8
    assert losses[-1] < losses[0] - 0.1
    assert np.isfinite(trainer.state.log_history[-1]["train_loss"])
    assert any("eval_loss" in entry for entry in trainer.state.log_history)
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name in before if ".lora_" in name}
    trainer.save_model()
    assert (tmp_path / "adapter_model.safetensors").is_file()


class RecordedStates:
    """What the encoders made of clips, as `EncoderCache` returns it."""

    def __init__(self, states: dict[str, tuple[torch.Tensor, int]]):
        self.states = states

    def get(self, path: str) -> tuple[torch.Tensor, int]:
        return self.states[path]


def test_cached_states_are_padded_to_one_length(bucket_processor: SalmonnProcessor) -> None:
    pytest.importorskip("modeling_salmonn.data.encoder_cache")
    cache = RecordedStates({"a.wav": (torch.ones(100, 40), 50), "b.wav": (2 * torch.ones(250, 40), 310)})
    rows = [example(None, path="a.wav"), example(None), example(None, path="b.wav")]
    batch = SalmonnCollator(bucket_processor, cache)(rows)
    assert "input_features" not in batch
    assert batch["encoder_hidden_states"].shape == (2, 250, 40)
    assert batch["encoder_hidden_states"].sum((1, 2)).tolist() == [4000, 20000]
    assert batch["input_features_mask"].sum(1).tolist() == [50, 310]
    counts = (batch["input_ids"] == bucket_processor.audio_token_id).sum(1).tolist()
    layout = bucket_processor.feature_extractor.audio_layout
    assert counts == [layout.num_audio_tokens(50), 0, layout.num_audio_tokens(310)]


@pytest.mark.parametrize("order", ["rate first", "rate last"])
def test_samples_with_their_rate_are_one_clip(order: str, bucket_processor: SalmonnProcessor) -> None:
    samples, rate = make_clip(0.5, rate=8000), 8000
    pair = (rate, samples) if order == "rate first" else (samples, rate)
    named = {"array": samples, "sampling_rate": rate}
    batch = SalmonnCollator(bucket_processor)([example(audio=pair), example(audio=[pair, named])])
    expected = SalmonnCollator(bucket_processor)([example(audio=named), example(audio=[named, named])])
    assert torch.equal(batch["input_features"], expected["input_features"])
    assert torch.equal(batch["input_ids"], expected["input_ids"])


def test_text_that_no_tokenizer_reads_raises(bucket_processor: SalmonnProcessor) -> None:
    whole = {"audio": None, "instruction": "What?", "answer": "A duck."}
    with pytest.raises(ValueError, match=r"text_target has half of a character, '\\ud800'"):
        SalmonnCollator(bucket_processor)([whole, whole | {"answer": "\ud800"}])
