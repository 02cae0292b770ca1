"""Whisper and a language model as peers of SALMONN."""

import shutil
from pathlib import Path

import pytest
import torch
from byte_tokenizer import byte_tokenizer
from conftest import make_clip
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from modeling_salmonn.data.tasks import choose_tasks, load_tasks
from modeling_salmonn.evaluation.answering import Answerer, Decoding
from modeling_salmonn.evaluation.baselines import ReadingAnswerer, WhisperAnswerer, load_answerer, tasks_for
from modeling_salmonn.evaluation.judges import RuleJudge
from modeling_salmonn.evaluation.run import EvaluationSettings, evaluate


TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random Whisper for English, with a token for every byte."""
    folder = tmp_path_factory.mktemp("whisper")
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|startoftranscript|>", "<|notimestamps|>"]})
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "num_mel_bins": 80, "max_target_positions": 40}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    ends = {"pad_token_id": 2, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    torch.manual_seed(0)
    config = WhisperConfig(vocab_size=len(tokenizer), suppress_tokens=None, **sizes, **heads, **ends)
    model = WhisperForConditionalGeneration(config)
    torch.nn.init.normal_(model.proj_out.weight, std=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random language model with a chat template."""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.5, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def texts(answerer: WhisperAnswerer | ReadingAnswerer, examples: list[dict]) -> list[str]:
    return [answer.text for answer in answerer.answer_prepared(examples, Decoding(8))]


def test_model_is_told_by_its_configuration(whisper: str, llama: str, saved_folder: Path) -> None:
    assert isinstance(load_answerer(whisper), WhisperAnswerer)
    assert isinstance(load_answerer(llama), ReadingAnswerer)
    assert isinstance(load_answerer(str(saved_folder)), Answerer)
    with pytest.raises(ValueError, match=r"\./nothing holds no model"):
        load_answerer("./nothing")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("peer", ["whisper", "llama"])
def test_peers_have_weights_of_the_type_that_is_named(
    peer: str, dtype: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(request.getfixturevalue(peer), tmp_path / "half"))
    kind = WhisperForConditionalGeneration if peer == "whisper" else LlamaForCausalLM
    kind.from_pretrained(source).half().save_pretrained(source)  # whatever they were saved in
    answerer = load_answerer(str(source), dtype)
    assert {parameter.dtype for parameter in answerer.model.parameters()} == {getattr(torch, dtype)}
    assert len(texts(answerer, [{"audio": make_clip(1), "transcript": "words", "instruction": "Answer."}])) == 1
    with pytest.raises(ValueError, match="dtype is 'int8', but it needs one of float32, bfloat16, float16"):
        load_answerer(str(source), "int8")


def test_peers_get_the_tasks_that_they_are_meant_for(whisper: str, llama: str, saved_folder: Path) -> None:
    tasks = choose_tasks(load_tasks(), ["all"])
    assert [task.name for task in tasks_for(load_answerer(whisper), tasks)] == ["asr", "overlapped_speech"]
    assert len(tasks_for(load_answerer(llama), tasks)) == len(tasks) - 2
    assert tasks_for(load_answerer(str(saved_folder)), tasks) == tasks
    with pytest.raises(ValueError, match="None of the tasks is for a WhisperForConditionalGeneration"):
        tasks_for(load_answerer(whisper), choose_tasks(load_tasks(), ["story"]))


def test_whisper_in_a_batch_answers_as_alone_and_hears_all_of_a_long_clip(whisper: str) -> None:
    answerer = load_answerer(whisper)
    clips = [make_clip(2, seed=1), make_clip(61, seed=2), make_clip(5, seed=3)]
    together = texts(answerer, [{"audio": clip} for clip in clips])
    alone = [texts(answerer, [{"audio": clip}])[0] for clip in clips]
    assert together == alone
    parts = [clips[1][: 30 * 16000], clips[1][30 * 16000 : 60 * 16000], clips[1][60 * 16000 :]]
    assert together[1] == " ".join(texts(answerer, [{"audio": part} for part in parts]))


def test_language_model_gets_the_beginning_of_its_template_once(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = ReadingAnswerer(llama)
    reading.tokenizer.chat_template = "{{ bos_token }}" + TEMPLATE
    seen = []
    generate = reading.model.generate
    monkeypatch.setattr(
        reading.model, "generate", lambda **inputs: seen.append(inputs["input_ids"]) or generate(**inputs)
    )
    texts(reading, [{"path": "a.wav", "instruction": "Say it.", "transcript": "words"}])
    assert (seen[0] == reading.tokenizer.bos_token_id).sum() == 1


def test_language_model_reads_the_transcript(llama: str) -> None:
    answerer = load_answerer(llama)
    examples = [
        {"path": "a.wav", "transcript": transcript, "instruction": "Answer."}
        for transcript in ("What is the capital of France?", "Hi.")
    ]
    together = texts(answerer, examples)
    assert together == [texts(answerer, [example])[0] for example in examples]
    assert together[0] != together[1]
    with pytest.raises(ValueError, match=r"b\.wav has no 'transcript'"):
        answerer.answer_prepared([{"path": "b.wav", "instruction": "Answer."}], Decoding(8))


@pytest.mark.parametrize("peer", ["whisper", "llama"])
def test_lora_scale_of_a_peer_raises_and_leaves_nothing(
    peer: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    tasks, rows = choose_tasks(load_tasks(), ["asr"]), [{"path": "a.wav", "task": "asr", "text": "words"}]
    settings = EvaluationSettings(lora_scale=2.0)
    with pytest.raises(
        ValueError, match="has no LoRA adapter, so there is no scale to change; give a SALMONN with one"
    ):
        evaluate(request.getfixturevalue(peer), tasks, rows, tmp_path / "out", RuleJudge(), settings)
    assert not (tmp_path / "out").exists()
