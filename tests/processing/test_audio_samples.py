"""Samples of audio: decoded, scaled, resampled and mixed to mono, and unusable ones raise."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from audio_decoder import Decoder
from conftest import SAMPLING_RATE, make_clip

from modeling_salmonn.processing.audio_io_salmonn import load_mono


TONE_HZ = 440
RATES = (8000, 11025, 22050, 44100, 48000)


def make_tone(seconds: float, rate: int) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * TONE_HZ * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def make_channels(count: int, samples: int = 800) -> np.ndarray:
    """Samples `(samples, channels)`, each channel a clip of its own."""
    return np.stack([make_clip(samples / SAMPLING_RATE, seed=seed) for seed in range(count)], axis=1)


def encode(samples: np.ndarray, rate: int = SAMPLING_RATE, container: str = "WAV", subtype: str = "FLOAT") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=container, subtype=subtype)
    return buffer.getvalue()


def encode_mp4(samples: np.ndarray, rate: int, codec: str = "aac") -> bytes:
    """Samples `(samples, channels)` as an MP4 file, which libsndfile cannot read."""
    av = pytest.importorskip("av", reason="PyAV is not installed")
    layout = {1: "mono", 2: "stereo"}[samples.shape[1]]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        for start in range(0, len(samples), 1024):
            planes = np.ascontiguousarray(samples[start : start + 1024].T)
            frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
            frame.sample_rate, frame.pts = rate, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def assert_tone(samples: np.ndarray, seconds: float = 1.0, amplitude: float = 0.5, tolerance: float = 0.01) -> None:
    """One second from the start is the tone of `make_tone`, at 16 kHz."""
    assert samples.ndim == 1
    assert samples.dtype == np.float32
    assert abs(len(samples) - seconds * SAMPLING_RATE) <= 1
    spectrum = np.abs(np.fft.rfft(samples[:SAMPLING_RATE])) / (SAMPLING_RATE / 2)
    assert spectrum.argmax() == TONE_HZ
    assert spectrum[TONE_HZ] == pytest.approx(amplitude, abs=tolerance)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0, 128, 192, 255], np.uint8), [-1, 0, 0.5, 127 / 128]),
        (np.array([-128, 0, 64, 127], np.int8), [-1, 0, 0.5, 127 / 128]),
        (np.array([-32768, 0, 16384, 32767], np.int16), [-1, 0, 0.5, 32767 / 32768]),
        (np.array([-(2**31), 0, 2**30], np.int32), [-1, 0, 0.5]),
        (np.array([-1.5, 0, 2], np.float16), [-1.5, 0, 2]),
    ],
    ids=lambda value: str(value.dtype) if isinstance(value, np.ndarray) else "",
)
def test_load_mono_scales_integers_to_one(values: np.ndarray, expected: list[float]) -> None:
    expected_samples = np.array(expected, np.float32)
    assert np.array_equal(load_mono(values, SAMPLING_RATE), expected_samples)
    assert np.array_equal(load_mono(torch.from_numpy(values), SAMPLING_RATE).numpy(), expected_samples)


def test_load_mono_leaves_its_input_as_it_was() -> None:
    stereo = make_channels(2)
    before = stereo.copy()
    load_mono(stereo, SAMPLING_RATE, 8000)
    assert np.array_equal(stereo, before)


@pytest.mark.parametrize("rate", RATES)
def test_load_mono_resamples_samples(rate: int) -> None:
    tone = make_tone(1.0, rate)
    loaded = load_mono(tone, SAMPLING_RATE, rate)
    assert len(loaded) == SAMPLING_RATE
    middle = slice(1600, -1600)  # the filter rings at both ends
    np.testing.assert_allclose(loaded[middle], make_tone(1.0, SAMPLING_RATE)[middle], atol=1e-3)
    tensor = load_mono(torch.from_numpy(tone), SAMPLING_RATE, rate)
    assert isinstance(tensor, torch.Tensor)
    assert np.array_equal(tensor.numpy(), loaded)


@pytest.mark.parametrize("rate", RATES)
def test_load_mono_resamples_a_file_from_its_own_rate(rate: int) -> None:
    tone = make_tone(1.0, rate)
    loaded = load_mono(encode(tone, rate), SAMPLING_RATE, sampling_rate=12345)
    assert np.array_equal(loaded, load_mono(tone, SAMPLING_RATE, rate))


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("count", [100, 1001, 7777])
def test_load_mono_resampled_length_is_right(rate: int, count: int) -> None:
    clip = make_clip(1.0, rate)[:count]
    assert abs(len(load_mono(clip, SAMPLING_RATE, rate)) - count * SAMPLING_RATE / rate) < 1


def test_load_mono_removes_what_the_new_rate_cannot_hold() -> None:
    time = np.arange(48000) / 48000
    loaded = load_mono(np.sin(2 * np.pi * 10000 * time), SAMPLING_RATE, 48000)
    assert np.abs(loaded[1600:-1600]).max() < 1e-3


def test_load_mono_prefers_the_rate_of_a_dict() -> None:
    tone = make_tone(0.5, 8000)
    loaded = load_mono({"array": tone, "sampling_rate": 8000}, SAMPLING_RATE, sampling_rate=44100)
    assert np.array_equal(loaded, load_mono(tone, SAMPLING_RATE, 8000))


@pytest.mark.parametrize("count", [2, 6])
def test_load_mono_averages_channels(count: int) -> None:
    channels = make_channels(count)
    for source in (encode(channels), channels, channels.T, torch.from_numpy(channels), torch.from_numpy(channels.T)):
        np.testing.assert_allclose(load_mono(source, SAMPLING_RATE), channels.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("channel", [0, 1])
def test_load_mono_takes_one_channel(channel: int) -> None:
    channels = make_channels(2)
    decoder = Decoder(torch.from_numpy(channels.T.copy()), SAMPLING_RATE)
    tensor = torch.from_numpy(channels)
    for source in (encode(channels), channels, channels.T, tensor, tensor.T, decoder, {"array": channels}):
        assert np.array_equal(load_mono(source, SAMPLING_RATE, channel=channel), channels[:, channel])


def test_load_mono_takes_one_channel_before_resampling() -> None:
    channels = make_channels(2)
    expected = load_mono(channels[:, 1].copy(), SAMPLING_RATE, 8000)
    for source in (channels, channels.T, torch.from_numpy(channels), torch.from_numpy(channels).T):
        assert np.array_equal(load_mono(source, SAMPLING_RATE, 8000, channel=1), expected)


@pytest.mark.parametrize("suffix", ["flac", "wav"])
def test_load_mono_decodes_lossless_files_exactly(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    soundfile.write(path, make_clip(0.3), SAMPLING_RATE, subtype="PCM_24")
    assert np.array_equal(load_mono(path, SAMPLING_RATE), soundfile.read(path, dtype="float32")[0])
    np.testing.assert_allclose(load_mono(path, SAMPLING_RATE), make_clip(0.3), atol=2**-23)


@pytest.mark.parametrize("rate", [SAMPLING_RATE, 48000])
@pytest.mark.parametrize(
    ("container", "subtype"), [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("AIFF", "PCM_16")]
)
def test_load_mono_decodes_compressed_files(container: str, subtype: str, rate: int) -> None:
    assert_tone(load_mono(encode(make_tone(1.0, rate), rate, container, subtype), SAMPLING_RATE))


def test_load_mono_decodes_mp3() -> None:
    if "MP3" not in soundfile.available_formats():
        pytest.skip("this libsndfile has no MP3")
    assert_tone(load_mono(encode(make_tone(1.0, 44100), 44100, "MP3", "MPEG_LAYER_III"), SAMPLING_RATE))


@pytest.mark.parametrize("rate", [SAMPLING_RATE, 48000])
def test_load_mono_decodes_what_libsndfile_cannot(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "tone.m4a"
    path.write_bytes(encode_mp4(make_tone(2.0, rate)[:, None], rate))
    with pytest.raises(soundfile.LibsndfileError, match="Format not recognised"):
        soundfile.read(path)
    loaded = load_mono(path, SAMPLING_RATE)
    assert 2.0 <= len(loaded) / SAMPLING_RATE <= 2.0 + 2 * 1024 / rate  # the encoder fills its last frame
    assert_tone(loaded[8000:24000])


def test_load_mono_decodes_the_channels_of_what_libsndfile_cannot() -> None:
    tone = make_tone(2.0, SAMPLING_RATE)
    content = encode_mp4(np.stack([tone, 0.2 * tone], axis=1), SAMPLING_RATE)
    for channel, amplitude in ((0, 0.5), (1, 0.1), (None, 0.3)):
        assert_tone(load_mono(content, SAMPLING_RATE, channel=channel)[8000:24000], amplitude=amplitude)


def test_load_mono_undecodable_file_raises(tmp_path: Path) -> None:
    path = tmp_path / "garbage.wav"
    path.write_bytes(bytes(range(256)) * 8)
    remedies = "convert the file to WAV or FLAC, or install torchcodec or PyAV"
    for source in (path, str(path), {"bytes": path.read_bytes(), "path": str(path)}):
        with pytest.raises(ValueError, match=rf"garbage\.wav cannot be decoded \(Format not recognised.*{remedies}"):
            load_mono(source, SAMPLING_RATE)
    with pytest.raises(ValueError, match=rf"clip 3 cannot be decoded .*{remedies}"):
        load_mono(path.read_bytes(), SAMPLING_RATE, name="clip 3")


def test_load_mono_text_file_raises(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("This is not audio.")
    with pytest.raises(ValueError, match=r"notes\.txt cannot be decoded"):
        load_mono(path, SAMPLING_RATE)


@pytest.mark.parametrize("rate", [0, -8000])
def test_load_mono_rate_not_positive_raises(rate: int) -> None:
    clip = make_clip(0.1)
    message = f"has a sampling rate of {rate} Hz; give a positive one"
    with pytest.raises(ValueError, match=f"audio {message}"):
        load_mono(clip, SAMPLING_RATE, rate)
    with pytest.raises(ValueError, match=rf"clip\.wav {message}"):
        load_mono({"array": clip, "sampling_rate": rate, "path": "clip.wav"}, SAMPLING_RATE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate", [SAMPLING_RATE, 8000])
def test_load_mono_not_finite_raises(tmp_path: Path, value: float, rate: int) -> None:
    clip = make_clip(0.1)
    clip[700] = value
    for source in (clip, clip.astype(np.float64), torch.from_numpy(clip), clip.tolist(), {"array": clip}):
        with pytest.raises(ValueError, match="audio contains NaN or infinite samples; repair or drop the clip"):
            load_mono(source, SAMPLING_RATE, rate)
    path = tmp_path / "broken.wav"
    path.write_bytes(encode(clip, rate))
    with pytest.raises(ValueError, match=r"broken\.wav contains NaN or infinite samples"):
        load_mono(path, SAMPLING_RATE)


@pytest.mark.parametrize("shape", [(0,), (0, 1), (1, 0), (0, 2), (2, 0)])
@pytest.mark.parametrize("channel", [None, 0])
def test_load_mono_without_samples_raises(shape: tuple[int, ...], channel: int | None) -> None:
    for source in (np.zeros(shape, np.float32), torch.zeros(shape), {"array": np.zeros(shape, np.int16)}):
        with pytest.raises(ValueError, match="audio is empty: it has no samples"):
            load_mono(source, SAMPLING_RATE, channel=channel)


@pytest.mark.parametrize("channels", [1, 2])
def test_load_mono_file_without_samples_raises(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "silent.wav"
    path.write_bytes(encode(np.zeros((0, channels), np.float32)))
    with pytest.raises(ValueError, match=r"silent\.wav is empty: it has no samples"):
        load_mono(path, SAMPLING_RATE)


def test_load_mono_empty_list_raises() -> None:
    with pytest.raises(ValueError, match="audio is empty: it has no samples"):
        load_mono([], SAMPLING_RATE)


def test_load_mono_too_short_to_resample_raises() -> None:
    with pytest.raises(ValueError, match="audio is too short to be resampled to 16000 Hz"):
        load_mono(np.ones(1, np.float32), SAMPLING_RATE, 48000)


@pytest.mark.parametrize("channel", [2, 7, -1])
def test_load_mono_absent_channel_raises(channel: int) -> None:
    channels = make_channels(2)
    for source in (channels, torch.from_numpy(channels.T), encode(channels)):
        with pytest.raises(ValueError, match=f"audio has 2 channels; there is no channel {channel}"):
            load_mono(source, SAMPLING_RATE, channel=channel)


@pytest.mark.parametrize("shape", [(), (2, 3, 400)])
def test_load_mono_wrong_shape_raises(shape: tuple[int, ...]) -> None:
    for source in (np.zeros(shape, np.float32), torch.zeros(shape)):
        with pytest.raises(
            ValueError, match=r"audio has the shape \(.*\); give \(samples,\) or \(samples, channels\)"
        ):
            load_mono(source, SAMPLING_RATE)


@pytest.mark.parametrize("dtype", ["bool", "complex64"])
def test_load_mono_wrong_dtype_raises(dtype: str) -> None:
    clip = make_clip(0.1).astype(dtype)
    for source in (clip, torch.from_numpy(clip), {"array": clip}):
        with pytest.raises(ValueError, match=rf"audio has the dtype (torch\.)?{dtype}; give float or integer PCM"):
            load_mono(source, SAMPLING_RATE)
