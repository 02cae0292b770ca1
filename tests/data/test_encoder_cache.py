"""The cache of encoder states: what it gives is what the encoders give, whatever interrupts it."""

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import SAMPLING_RATE, make_clip, tiny_config, tiny_model
from safetensors.torch import save_file

from modeling_salmonn import SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.data import encoder_cache as feature_cache
from modeling_salmonn.data.collator import SalmonnCollator
from modeling_salmonn.data.encoder_cache import EncoderCache


@pytest.fixture
def clips(tmp_path: Path) -> list[str]:
    paths = []
    for index, seconds in enumerate((0.3, 1.9, 2.2, 7.0, 34.0)):
        path = tmp_path / f"clip{index}.wav"
        soundfile.write(path, make_clip(seconds, seed=index), SAMPLING_RATE)
        paths.append(str(path))
    return paths


def make_cache(
    tmp_path: Path, model: SalmonnForConditionalGeneration, processor: SalmonnProcessor, **options: object
) -> EncoderCache:
    options = {"dtype": torch.float32} | options
    return EncoderCache(tmp_path / "cache", model, processor.feature_extractor, **options)


@torch.no_grad()
def test_cached_batch_gives_the_loss_of_audio(
    tmp_path: Path, clips: list[str], bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    cache = make_cache(tmp_path, bucket_model, bucket_processor)
    assert cache.encode(clips, batch_size=2, progress=False) == []
    examples = [{"path": clip, "audio": clip, "instruction": "What?", "answer": "A tone."} for clip in clips]
    with_audio = bucket_model(**SalmonnCollator(bucket_processor)(examples)).loss
    with_cache = bucket_model(**SalmonnCollator(bucket_processor, cache)(examples)).loss
    torch.testing.assert_close(with_cache, with_audio, atol=1e-5, rtol=1e-5)


def test_cached_states_are_the_same_alone_and_in_a_batch(
    tmp_path: Path, clips: list[str], bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    batched = make_cache(tmp_path / "batched", bucket_model, bucket_processor)
    batched.encode(clips, batch_size=len(clips), progress=False)
    alone = make_cache(tmp_path / "alone", bucket_model, bucket_processor)
    for clip in clips:
        states, frames = batched.get(clip)
        expected, expected_frames = alone.get(clip)
        assert frames == expected_frames
        torch.testing.assert_close(states, expected, atol=1e-4, rtol=1e-4)


def test_cache_can_be_sent_to_workers(
    tmp_path: Path, clips: list[str], bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    cache = make_cache(tmp_path, bucket_model, bucket_processor)
    cache.encode(clips[:1], progress=False)
    sent = pickle.loads(pickle.dumps(cache))  # as where workers are spawned
    assert torch.equal(sent.get(clips[0])[0], cache.get(clips[0])[0])
    with pytest.raises(ValueError, match="encode all clips before workers are started"):
        sent.get(clips[1])


def test_encoding_again_writes_nothing(
    tmp_path: Path, clips: list[str], bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    make_cache(tmp_path, bucket_model, bucket_processor).encode(clips, progress=False)
    files = sorted((tmp_path / "cache").rglob("*.safetensors"))
    written = [file.stat().st_mtime_ns for file in files]
    assert len(files) == 2 * len(clips)
    make_cache(tmp_path, bucket_model, bucket_processor).encode(clips, progress=False)
    assert [file.stat().st_mtime_ns for file in files] == written


def test_damaged_file_is_encoded_again(
    tmp_path: Path, clips: list[str], bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    cache = make_cache(tmp_path, bucket_model, bucket_processor)
    expected, _ = cache.get(clips[1])
    for file in (tmp_path / "cache").rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    states, _ = cache.get(clips[1])
    assert torch.equal(states, expected)


def test_changed_clip_gets_states_of_its_own(
    tmp_path: Path, clips: list[str], bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    before, _ = make_cache(tmp_path, bucket_model, bucket_processor).get(clips[1])
    soundfile.write(clips[1], make_clip(1.9, seed=9), SAMPLING_RATE)
    after, _ = make_cache(tmp_path, bucket_model, bucket_processor).get(clips[1])
    assert not torch.equal(before, after)


def test_other_encoder_weights_get_a_folder_of_their_own(
    tmp_path: Path, clips: list[str], bucket_processor: SalmonnProcessor
) -> None:
    model = tiny_model(tiny_config(segment_seconds=[2, 5, 10, 30], trim_audio_tokens=True))
    cache = make_cache(tmp_path, model, bucket_processor)
    with torch.no_grad():
        model.model.audio_encoder.patch_projection.weight.mul_(1.1)
    changed = make_cache(tmp_path, model, bucket_processor)
    assert changed.folders["speech"] == cache.folders["speech"]
    assert changed.folders["audio"] != cache.folders["audio"]


@pytest.mark.parametrize(
    ("encoder", "setting"),
    [
        ("speech", {"encoder_attention_heads": 4}),
        ("speech", {"activation_function": "relu"}),
        ("audio", {"num_attention_heads": 4}),
        ("audio", {"hidden_act": "relu"}),
    ],
)
def test_other_encoder_configuration_gets_a_folder_of_its_own(
    encoder: str, setting: dict[str, object], tmp_path: Path, bucket_processor: SalmonnProcessor
) -> None:
    model = tiny_model(tiny_config(segment_seconds=[2, 5, 10, 30], trim_audio_tokens=True))
    cache = make_cache(tmp_path, model, bucket_processor)
    getattr(model.model, f"{encoder}_encoder").config.update(setting)
    changed = make_cache(tmp_path, model, bucket_processor)
    assert {name for name in cache.folders if changed.folders[name] != cache.folders[name]} == {encoder}


def test_saved_and_loaded_model_keeps_its_folders(
    tmp_path: Path, based_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    expected = make_cache(tmp_path, based_model, bucket_processor).folders
    for adapter_only in (False, True):  # the encoders come from the folder, or from their bases
        folder = tmp_path / f"adapter_only={adapter_only}"
        based_model.save_pretrained(folder, adapter_only=adapter_only)
        loaded = SalmonnForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")
        assert make_cache(tmp_path, loaded, bucket_processor).folders == expected


def test_unreadable_clips_are_named_and_the_others_encoded(
    tmp_path: Path, clips: list[str], bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF no audio")
    cache = make_cache(tmp_path, bucket_model, bucket_processor)
    missing = str(tmp_path / "missing.wav")
    problems = dict(cache.encode([*clips[:2], str(broken), missing], progress=False))
    assert problems.keys() == {str(broken), missing}
    assert "There is no audio file" in str(problems[missing])
    assert cache.get(clips[0])[1] == 30
    with pytest.raises(ValueError, match=r"broken\.wav"):
        cache.get(str(broken))


def test_half_precision_stays_close(
    tmp_path: Path, clips: list[str], bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    full, _ = make_cache(tmp_path / "full", bucket_model, bucket_processor).get(clips[2])
    half, _ = make_cache(tmp_path / "half", bucket_model, bucket_processor, dtype=torch.float16).get(clips[2])
    assert half.dtype == torch.float16
    np.testing.assert_allclose(half.float(), full, atol=5e-3)


def test_second_encoder_alone_is_run_on_clips_that_have_the_states_of_the_first(
    tmp_path: Path, clips: list[str], bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    both = make_cache(tmp_path, bucket_model, bucket_processor)
    speech_alone = make_cache(tmp_path, bucket_model, bucket_processor)
    del speech_alone.folders["audio"]
    speech_alone.encode(clips, progress=False)
    written = {file: file.stat().st_mtime_ns for file in both.folders["speech"].rglob("*.safetensors")}
    assert len(written) == len(clips)
    both.encode(clips, progress=False)
    assert {file: file.stat().st_mtime_ns for file in both.folders["speech"].rglob("*.safetensors")} == written
    fresh = make_cache(tmp_path / "fresh", bucket_model, bucket_processor)
    for clip in clips:
        torch.testing.assert_close(both.get(clip)[0], fresh.get(clip)[0], atol=1e-4, rtol=1e-4)


def fill_slowly(cache: EncoderCache, clips: list[str], has_begun: Any, other_is_done: Any, found: Any) -> None:
    """In a process of its own: the other one is done after this one knows what is missing, and before it writes."""
    read = cache.feature_extractor.fetch_audio

    def read_at_last(clips: Any) -> Any:
        has_begun.set()
        assert other_is_done.wait(timeout=120)
        return read(clips)

    cache.feature_extractor.fetch_audio = read_at_last  # type: ignore[method-assign]
    try:
        found.put(cache.encode(clips, progress=False))
    except Exception as error:
        found.put(repr(error))


def test_two_processes_fill_one_cache(
    tmp_path: Path, clips: list[str], bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    context = multiprocessing.get_context("fork")
    has_begun, other_is_done, found = context.Event(), context.Event(), context.SimpleQueue()
    slow, quick = (make_cache(tmp_path, bucket_model, bucket_processor) for _ in range(2))
    process = context.Process(target=fill_slowly, args=(slow, clips[:3], has_begun, other_is_done, found))
    process.start()
    assert has_begun.wait(timeout=120)
    assert quick.encode(clips[:3], progress=False) == []
    states = {clip: quick.get(clip)[0] for clip in clips[:3]}
    other_is_done.set()
    process.join(timeout=120)
    assert process.exitcode == 0
    assert found.get() == []
    assert not list((tmp_path / "cache").rglob("*unfinished"))
    assert all(torch.equal(quick.get(clip)[0], states[clip]) for clip in clips[:3])


def test_processes_with_one_id_do_not_share_an_unfinished_file(
    tmp_path: Path,
    clips: list[str],
    bucket_model: SalmonnForConditionalGeneration,
    bucket_processor: SalmonnProcessor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on two hosts: both write the same clip, and each has begun before the other is done."""
    cache = make_cache(tmp_path, bucket_model, bucket_processor)
    written: list[Path] = []

    def save_both(tensors: Any, file: Path, metadata: Any) -> None:
        save_file(tensors, file, metadata)
        written.append(file)
        if len(written) == 1:
            cache._write(cache._file("speech", clips[0]), tensors["states"], int(metadata["mel_frames"]))

    monkeypatch.setattr(feature_cache, "save_file", save_both)
    cache.encode(clips[:1], progress=False)
    assert len(set(written)) == len(written) == 3
    assert cache.get(clips[0])[1] == 30


@pytest.mark.parametrize("damage", ["no length", "long length", "other states"])
def test_file_of_another_form_is_encoded_again(
    damage: str,
    tmp_path: Path,
    clips: list[str],
    bucket_model: SalmonnForConditionalGeneration,
    bucket_processor: SalmonnProcessor,
) -> None:
    cache = make_cache(tmp_path, bucket_model, bucket_processor)
    expected, frames = cache.get(clips[1])
    for file in (tmp_path / "cache").rglob("*.safetensors"):
        name = "other" if damage == "other states" else "states"
        metadata = {"no length": None, "long length": {"mel_frames": str(10**12)}}.get(damage, {"mel_frames": "1"})
        save_file({name: torch.zeros(100, 16)}, file, metadata)
    states, again = cache.get(clips[1])
    assert again == frames
    assert torch.equal(states, expected)
