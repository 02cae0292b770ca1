"""Both features of each clip: equal to the references, and independent of the batch around them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import SAMPLING_RATE, SEGMENT_CHOICES, make_clip, tiny_config, tiny_processor
from transformers import WhisperFeatureExtractor

from modeling_salmonn import SalmonnFeatureExtractor
from modeling_salmonn.processing.feature_extraction_salmonn import is_batch, kaldi_fbank


FEATURES = ("input_features", "input_features_mask", "audio_input_features", "audio_input_features_mask")
FBANK_MEAN, FBANK_STD = 15.41663, 6.55582
MIXED_SECONDS = (0.2, 1.0, 4.321, 31.0, 70.0)


@pytest.fixture(scope="module", params=SEGMENT_CHOICES, ids=str)
def extractor(request: pytest.FixtureRequest) -> SalmonnFeatureExtractor:
    return make_extractor(request.param)


@pytest.fixture(scope="module")
def short_extractor() -> SalmonnFeatureExtractor:
    """Quick, for tests that do not depend on the layout."""
    return make_extractor([2, 5, 10, 30])


def make_extractor(segment_seconds: Any, **options: Any) -> SalmonnFeatureExtractor:
    return tiny_processor(tiny_config(segment_seconds=segment_seconds), **options).feature_extractor


def extract(extractor: SalmonnFeatureExtractor, audio: Any, **options: Any) -> dict[str, torch.Tensor]:
    return dict(extractor(audio, sampling_rate=SAMPLING_RATE, **options))


def assert_same_features(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert list(first) == list(second)
    for name in first:
        assert torch.equal(first[name], second[name]), name


def memory(field: str) -> int:
    """Bytes of this process, by its status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def slow_fbank(samples: np.ndarray, num_bins: int) -> np.ndarray:
    """Kaldi's `compute-fbank-feats --dither=0 --sample-frequency=16000`, one number after the other in float64."""
    signal = samples.astype(np.float64) * 32768
    window = [(0.5 - 0.5 * np.cos(2 * np.pi * n / 399)) ** 0.85 for n in range(400)]

    def to_mel(hz: float) -> float:
        return 1127 * np.log(1 + hz / 700)

    lowest, highest = to_mel(20), to_mel(8000)
    step = (highest - lowest) / (num_bins + 1)
    rows = []
    for start in range(0, len(signal) - 399, 160):
        frame = signal[start : start + 400] - np.mean(signal[start : start + 400])
        emphasised = [frame[n] - 0.97 * frame[max(n - 1, 0)] for n in range(400)]
        spectrum = np.fft.rfft(np.multiply(emphasised, window), 512)
        power = spectrum.real**2 + spectrum.imag**2
        row = []
        for index in range(num_bins):
            left, centre, right = (lowest + (index + side) * step for side in range(3))
            energy = 0.0
            for bin_index in range(256):
                mel = to_mel(bin_index * SAMPLING_RATE / 512)
                if left < mel < right:
                    rising, falling = (mel - left) / (centre - left), (right - mel) / (right - centre)
                    energy += power[bin_index] * min(rising, falling)
            row.append(np.log(max(energy, np.finfo(np.float32).eps)))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("num_bins", [80, 128])
def test_log_mel_equals_whisper(num_bins: int) -> None:
    extractor = SalmonnFeatureExtractor(feature_size=num_bins)
    whisper = WhisperFeatureExtractor(feature_size=num_bins)
    clips = [make_clip(0.3), make_clip(12.34, seed=1), make_clip(30.0, seed=2), np.zeros(8000, np.float32)]
    expected = whisper(clips, sampling_rate=SAMPLING_RATE, return_tensors="pt")["input_features"]
    features = extract(extractor, clips)["input_features"]
    assert features.shape == expected.shape == (4, num_bins, 3000)
    assert (features - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("num_bins", [23, 128])
@pytest.mark.parametrize("amplitude", [1.0, 1e-4, 0.0])
def test_kaldi_fbank_equals_slow_computation(num_bins: int, amplitude: float) -> None:
    clip = (amplitude * make_clip(0.1)).astype(np.float32)
    expected = slow_fbank(clip, num_bins)
    features = kaldi_fbank(torch.from_numpy(clip)[None], num_bins)
    assert features.shape == (1, 8, num_bins) == (1, *expected.shape)
    np.testing.assert_allclose(features[0], expected, atol=1e-6)


@pytest.mark.parametrize(("samples", "frames"), [(400, 1), (559, 1), (560, 2), (16000, 98)])
def test_kaldi_fbank_has_whole_windows_only(samples: int, frames: int) -> None:
    assert kaldi_fbank(torch.ones(2, samples), 16).shape == (2, frames, 16)


def test_fbank_is_normalised_and_padded_with_zeros(short_extractor: SalmonnFeatureExtractor) -> None:
    clip = make_clip(1.05)
    fbank = extract(short_extractor, clip)["audio_input_features"][0]
    expected = (slow_fbank(clip, 128) - FBANK_MEAN) / (2 * FBANK_STD)
    assert fbank.shape == (200, 128)
    np.testing.assert_allclose(fbank[: len(expected)], expected, atol=1e-5)
    assert not fbank[len(expected) :].any()


def test_batch_equals_each_clip_alone(extractor: SalmonnFeatureExtractor) -> None:
    clips = [make_clip(seconds, seed=seed) for seed, seconds in enumerate(MIXED_SECONDS)]
    batch = extract(extractor, clips)
    assert list(batch) == list(FEATURES)
    for row, clip in enumerate(clips):
        for name, alone in extract(extractor, clip).items():
            time_axis = 1 if name == "input_features" else 0
            length = alone[0].shape[time_axis]
            assert torch.equal(batch[name][row].narrow(time_axis, 0, length), alone[0]), (name, row)
            padding = batch[name][row].narrow(time_axis, length, batch[name][row].shape[time_axis] - length)
            assert not padding.any()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are read from /proc")
def test_memory_does_not_grow_with_the_number_of_segments(
    short_extractor: SalmonnFeatureExtractor, tmp_path: Path
) -> None:
    path = tmp_path / "long.wav"
    minute = make_clip(60.0)
    with soundfile.SoundFile(path, "w", SAMPLING_RATE, 1) as file:
        for _ in range(10):
            file.write(minute)
    short_extractor(minute, sampling_rate=SAMPLING_RATE)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest
    features = short_extractor(path)
    results = sum(value.nbytes for value in features.values()) + 10 * minute.nbytes
    assert memory("VmHWM") - before < results + 300e6  # all segments at once take 600 MB more


def test_segments_of_a_long_clip_equal_each_segment_alone(extractor: SalmonnFeatureExtractor) -> None:
    clip = make_clip(64.5)
    long = {name: value[0] for name, value in extract(extractor, clip).items()}
    segments = extractor.audio_layout.split(6450)
    assert [segment.audio_frames for segment in segments] == [3000, 3000, 450]
    assert long["input_features"].shape[1] == sum(segment.padded_frames for segment in segments)
    for index, segment in enumerate(segments):
        piece = clip[index * 30 * SAMPLING_RATE : (index + 1) * 30 * SAMPLING_RATE]
        alone = {name: value[0] for name, value in extract(extractor, piece).items()}
        span = slice(segment.offset, segment.offset + segment.padded_frames)
        assert torch.equal(long["input_features"][:, span], alone["input_features"])
        for name in FEATURES[1:]:
            assert torch.equal(long[name][span], alone[name]), name


@pytest.mark.parametrize(
    ("samples", "audio_frames", "fbank_frames"),
    [
        (1, 1, 98),
        (3200, 20, 98),
        (15999, 100, 98),
        (16000, 100, 98),
        (16001, 101, 98),
        (16080, 101, 99),
        (48000, 300, 298),
        (480000, 3000, 2998),
        (480001, 3001, 2998 + 98),  # the second segment is padded to 1 s
        (1120000, 7000, 2998 + 2998 + 998),
    ],
)
def test_masks_count_the_frames_of_the_audio(
    extractor: SalmonnFeatureExtractor, samples: int, audio_frames: int, fbank_frames: int
) -> None:
    features = extract(extractor, make_clip(70.0)[:samples])
    assert int(features["input_features_mask"].sum()) == audio_frames == extractor.num_audio_frames(samples)
    assert int(features["audio_input_features_mask"].sum()) == fbank_frames
    assert features["input_features_mask"][0, :audio_frames].all()
    assert not features["audio_input_features"][features["audio_input_features_mask"] == 0].any()


def test_short_clip_is_padded_to_one_second(extractor: SalmonnFeatureExtractor) -> None:
    clip = make_clip(0.2)
    short = extract(extractor, clip)
    padded = extract(extractor, np.pad(clip, (0, SAMPLING_RATE - len(clip))))
    for name in ("input_features", "audio_input_features", "audio_input_features_mask"):
        assert torch.equal(short[name], padded[name])
    assert int(short["input_features_mask"].sum()) == 20  # only these become trimmed tokens


def test_rows_are_padded_to_the_smallest_segments() -> None:
    clips = [make_clip(seconds) for seconds in (0.2, 3.0, 12.0, 36.0)]
    official, short = make_extractor(30.0), make_extractor([2, 5, 10, 30])
    for clip, seconds in zip(clips, (2, 5, 30, 40), strict=True):
        assert extract(short, clip)["input_features"].shape == (1, 80, 100 * seconds)
    assert extract(short, clips)["input_features"].shape == (4, 80, 4000)
    assert extract(official, clips[:3])["input_features"].shape == (3, 80, 3000)
    assert extract(official, clips[3])["input_features"].shape == (1, 80, 6000)


def test_speech_only_model_gets_no_fbank(short_extractor: SalmonnFeatureExtractor) -> None:
    config = tiny_config(audio=False, segment_seconds=[2, 5, 10, 30])
    extractor = tiny_processor(config).feature_extractor
    assert extractor.num_fbank_bins == 0
    clips = [make_clip(0.2), make_clip(1.5)]
    features, full = extract(extractor, clips), extract(short_extractor, clips)
    assert list(features) == extractor.model_input_names == ["input_features", "input_features_mask"]
    assert all(torch.equal(features[name], full[name]) for name in features)


def test_model_input_names_are_the_features(short_extractor: SalmonnFeatureExtractor) -> None:
    assert short_extractor.model_input_names == list(FEATURES) == list(extract(short_extractor, make_clip(0.2)))


def test_return_tensors_chooses_the_type(short_extractor: SalmonnFeatureExtractor) -> None:
    tensors = extract(short_extractor, make_clip(0.5), return_tensors="pt")
    arrays = extract(short_extractor, make_clip(0.5), return_tensors="np")
    for name in FEATURES:
        is_mask = name.endswith("mask")
        assert isinstance(tensors[name], torch.Tensor)
        assert isinstance(arrays[name], np.ndarray)
        assert tensors[name].dtype == (torch.long if is_mask else torch.float32)
        assert arrays[name].dtype == (np.int64 if is_mask else np.float32)
        assert np.array_equal(arrays[name], tensors[name].numpy())
    assert_same_features(extract(short_extractor, make_clip(0.5)), tensors)


@pytest.mark.parametrize(
    "variant",
    [
        lambda clip: torch.from_numpy(clip),
        lambda clip: clip.tolist(),
        lambda clip: tuple(clip.tolist()),
        lambda clip: list(clip),
        lambda clip: [clip],
        lambda clip: (torch.from_numpy(clip),),
        lambda clip: [clip.tolist()],
        lambda clip: np.stack([clip, clip]),
        lambda clip: np.flip(np.flip(clip).copy()),
        lambda clip: np.frombuffer(clip.tobytes(), np.float32),
        lambda clip: {"array": clip, "sampling_rate": SAMPLING_RATE},
    ],
    ids=[
        "tensor",
        "numbers",
        "tuple_of_numbers",
        "numpy_numbers",
        "list_of_one",
        "tuple_of_one",
        "list_of_numbers",
        "stereo",
        "negative_stride",
        "read_only",
        "dict",
    ],
)
@pytest.mark.filterwarnings("error")
def test_every_kind_of_samples_gives_the_same_features(short_extractor: SalmonnFeatureExtractor, variant: Any) -> None:
    clip = make_clip(0.5)
    assert_same_features(extract(short_extractor, variant(clip)), extract(short_extractor, clip))


def test_file_gives_the_features_of_its_samples(short_extractor: SalmonnFeatureExtractor, wav_file: Path) -> None:
    samples = soundfile.read(wav_file, dtype="float32")[0]
    expected = extract(short_extractor, samples)
    for source in (wav_file, str(wav_file), wav_file.read_bytes(), {"path": str(wav_file)}):
        assert_same_features(dict(short_extractor(source)), expected)
    both = short_extractor([wav_file, {"bytes": wav_file.read_bytes()}])
    assert torch.equal(both["input_features"][0], both["input_features"][1])


def test_samples_are_resampled_from_their_rate(short_extractor: SalmonnFeatureExtractor) -> None:
    clip = make_clip(1.0, 8000)
    bare = dict(short_extractor(clip, sampling_rate=8000))
    assert int(bare["input_features_mask"].sum()) == 100
    assert_same_features(dict(short_extractor({"array": clip, "sampling_rate": 8000}, sampling_rate=44100)), bare)


def test_fetch_audio_reads_one_clip_or_a_list(short_extractor: SalmonnFeatureExtractor, wav_file: Path) -> None:
    clip = short_extractor.fetch_audio(wav_file)
    assert clip.shape == (24000,)
    for several in ([wav_file], (str(wav_file),)):
        (loaded,) = short_extractor.fetch_audio(several)
        assert np.array_equal(loaded, clip)
    assert short_extractor.fetch_audio([]) == []
    assert short_extractor.fetch_audio(make_clip(0.5, 8000), 8000).shape == (8000,)


def test_channel_is_taken_from_clips_that_have_several(tmp_path: Path) -> None:
    stereo = np.stack([make_clip(0.5), make_clip(0.5, seed=1)], axis=1)
    path = tmp_path / "stereo.wav"
    soundfile.write(path, stereo, SAMPLING_RATE, subtype="FLOAT")
    extractor = make_extractor([2, 5, 10, 30], channel=1)
    expected = extract(extractor, stereo[:, 1])  # has no channels, and is taken as it is
    for source in (path, stereo, stereo.T, torch.from_numpy(stereo)):
        assert_same_features(extract(extractor, source), expected)


def test_num_audio_tokens_is_counted_from_samples() -> None:
    official = make_extractor(30.0)
    assert [official.num_audio_tokens(count) for count in (1, 480000, 480001, 1120000)] == [88, 88, 176, 264]
    trimming = SalmonnFeatureExtractor(trim_audio_tokens=True, num_query_tokens=2)
    assert [trimming.num_audio_tokens(count) for count in (5440, 5441, 480000)] == [2, 4, 176]
    assert [official.num_audio_frames(count) for count in (0, 1, 160, 161)] == [0, 1, 1, 2]


def test_clip_of_the_longest_allowed_length_is_extracted() -> None:
    extractor = make_extractor([2, 5, 10, 30], max_audio_seconds=1.5)
    assert int(extract(extractor, make_clip(1.5))["input_features_mask"].sum()) == 150


@pytest.mark.parametrize("kind", [str, Path, lambda path: {"path": str(path)}], ids=["string", "path", "dict"])
def test_too_long_file_raises(wav_file: Path, kind: Any) -> None:
    extractor = make_extractor([2, 5, 10, 30], max_audio_seconds=1.2)
    message = r"tone\.wav lasts 1\.5 s, more than max_audio_seconds 1\.2; cut it or raise the limit"
    with pytest.raises(ValueError, match=message):
        extractor([make_clip(0.5), kind(wav_file)], sampling_rate=SAMPLING_RATE)


def test_too_long_samples_raise() -> None:
    extractor = make_extractor([2, 5, 10, 30], max_audio_seconds=1)
    with pytest.raises(ValueError, match=r"audio 1 lasts 1\.5 s, more than max_audio_seconds 1; cut it"):
        extractor([make_clip(1.0), make_clip(1.5)], sampling_rate=SAMPLING_RATE)


def test_unusable_clip_of_a_list_raises_with_its_index(short_extractor: SalmonnFeatureExtractor) -> None:
    with pytest.raises(ValueError, match="audio 1 contains NaN or infinite samples"):
        short_extractor([make_clip(0.5), np.full(100, np.nan)], sampling_rate=SAMPLING_RATE)


@pytest.mark.parametrize("audio", [[], ()])
def test_empty_list_raises(short_extractor: SalmonnFeatureExtractor, audio: Any) -> None:
    with pytest.raises(ValueError, match="Got an empty list of clips; pass at least one"):
        short_extractor(audio)


@pytest.mark.parametrize("return_tensors", ["tf", "torch", 1])
def test_unknown_return_tensors_raises(short_extractor: SalmonnFeatureExtractor, return_tensors: Any) -> None:
    with pytest.raises(ValueError, match=f"return_tensors must be 'pt' or 'np', got {return_tensors!r}"):
        short_extractor(make_clip(0.2), sampling_rate=SAMPLING_RATE, return_tensors=return_tensors)


@pytest.mark.parametrize("rate", [8000, 44100, 0])
def test_other_encoder_rate_raises(rate: int) -> None:
    with pytest.raises(ValueError, match=f"The encoders need sampling_rate 16000, got {rate}"):
        SalmonnFeatureExtractor(sampling_rate=rate)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fbank_std": 0.0}, r"fbank_std must be a positive number, got 0\.0"),
        ({"fbank_std": -1.0}, r"fbank_std must be a positive number, got -1\.0"),
        ({"fbank_std": float("nan")}, r"fbank_std must be a positive number, got nan"),
        ({"fbank_std": "6.5"}, r"fbank_std must be a positive number, got '6\.5'"),
        ({"fbank_mean": float("inf")}, r"fbank_mean must be a finite number, got inf"),
        ({"fbank_mean": None}, r"fbank_mean must be a finite number, got None"),
        ({"fbank_mean": 1e30}, r"fbank_mean 1e\+30 and fbank_std 6\.55582 cannot be those of fbanks"),
        ({"fbank_std": 1e-30}, r"fbank_mean 15\.4166 and fbank_std 1e-30 cannot be those of fbanks"),
        ({"feature_size": 0}, r"feature_size must be a whole number from 1 to 1024, got 0"),
        ({"feature_size": 80.0}, r"feature_size must be a whole number from 1 to 1024, got 80\.0"),
        ({"num_fbank_bins": -1}, r"num_fbank_bins must be a whole number from 0 to 1024, got -1"),
        ({"num_fbank_bins": 10**9}, r"num_fbank_bins must be a whole number from 0 to 1024"),
        ({"num_fbank_bins": None}, r"num_fbank_bins must be a whole number from 0 to 1024, got None"),
        ({"feature_size": 128, "num_fbank_bins": 80}, r"feature_size 128 and num_fbank_bins 80 are swapped"),
        ({"channel": "0"}, r"channel must be None or a whole number from 0, got '0'"),
        ({"channel": -1}, r"channel must be None or a whole number from 0, got -1"),
        ({"channel": True}, r"channel must be None or a whole number from 0, got True"),
        ({"max_audio_seconds": 0}, r"max_audio_seconds must be None or a positive number, got 0"),
        ({"max_audio_seconds": "60"}, r"max_audio_seconds must be None or a positive number, got '60'"),
        ({"max_audio_seconds": float("nan")}, r"max_audio_seconds must be None or a positive number, got nan"),
        ({"max_download_bytes": 0}, r"max_download_bytes must be None or a whole number from 1, got 0"),
        ({"segment_seconds": "30"}, r"segment_seconds must be a number of seconds, got '30'"),
        ({"window_seconds": None}, r"window_seconds must be a number of seconds, got None"),
        ({"num_query_tokens": "1"}, r"num_query_tokens must be a whole number, got '1'"),
        ({"trim_audio_tokens": "yes"}, r"trim_audio_tokens must be True or False, got 'yes'"),
    ],
)
def test_wrong_setting_raises_when_made_and_when_loaded(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SalmonnFeatureExtractor(**options)
    SalmonnFeatureExtractor().save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | options))
    with pytest.raises(ValueError, match=message):
        SalmonnFeatureExtractor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"segment_seconds": [2, 5, 10, 30], "trim_audio_tokens": True, "num_query_tokens": 3},
        {"num_fbank_bins": 0, "feature_size": 128, "window_seconds": 0.5, "stride_seconds": 0.2},
        {"fbank_mean": 1.5, "fbank_std": 2.5, "channel": 0, "max_audio_seconds": 12.5},
    ],
)
def test_saved_extractor_loads_equal(tmp_path: Path, options: dict[str, Any]) -> None:
    extractor = SalmonnFeatureExtractor(**options)
    settings = extractor.to_dict()
    extractor.save_pretrained(tmp_path)
    loaded = SalmonnFeatureExtractor.from_pretrained(tmp_path)
    assert loaded.to_dict() == settings
    assert all(getattr(loaded, name) == value for name, value in options.items())
    assert loaded.audio_layout == extractor.audio_layout
    assert loaded.model_input_names == extractor.model_input_names
    assert_same_features(extract(loaded, make_clip(0.5)), extract(extractor, make_clip(0.5)))


@pytest.mark.parametrize(
    ("audio", "expected"),
    [
        ([], True),
        (["a.wav", "b.wav"], True),
        ((np.zeros(3), np.zeros(3)), True),
        ([[0.0, 1.0], [0.5]], True),
        ([0.0, 1.0], False),
        ([0, 1], False),
        ([np.float32(0.5)], False),
        ([np.int16(5)], False),
        ("a.wav", False),
        (b"RIFF", False),
        (np.zeros((2, 3)), False),
        ({"array": [0.0]}, False),
    ],
)
def test_is_batch_tells_clips_from_numbers(audio: Any, expected: bool) -> None:
    assert is_batch(audio) is expected
