"""Soundfonts of Debian packages, and notes turned into 16 kHz audio with them.

- one entry a soundfont, with the package that brings it and its licence
- fluidsynth plays SF2 and SF3 files, TiMidity++ plays the GUS patches of `freepats`
- soundfonts that are kept for testing are refused, also behind a link
"""

import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr


SAMPLING_RATE = 16_000
RENDER_RATE = 32_000  # twice the wanted rate: the synthesizer's aliases end up above the band that is kept
TICKS_PER_BEAT = 480
DRUM_CHANNEL, DRUM_BANK = 9, 128
RENDER_TIMEOUT_SECONDS = 3600  # only a player that hangs: a clip takes a second, but minutes on a crowded machine
RESERVED_SOUNDFONTS = ("MuseScore_General",)


@dataclass(frozen=True)
class SoundFont:
    """A soundfont as a Debian package installs it."""

    name: str
    package: str
    path: Path
    licence: str
    player: str = "fluidsynth"


SF2, SF3 = Path("/usr/share/sounds/sf2"), Path("/usr/share/sounds/sf3")
SOUNDFONTS = {
    font.name: font
    for font in (
        SoundFont("FluidR3_GM", "fluid-soundfont-gm", SF2 / "FluidR3_GM.sf2", "MIT"),
        SoundFont("FluidR3_GS", "fluid-soundfont-gs", SF2 / "FluidR3_GS.sf2", "MIT"),
        SoundFont("FluidR3Mono_GM", "fluidr3mono-gm-soundfont", SF3 / "FluidR3Mono_GM.sf3", "MIT"),
        SoundFont("TimGM6mb", "timgm6mb-soundfont", SF2 / "TimGM6mb.sf2", "GPL-2"),
        SoundFont("sf_GMbank", "csound-soundfont", SF2 / "sf_GMbank.sf2", "LGPL-2.1+"),
        SoundFont("OPL-3_FM", "opl3-soundfont", SF2 / "OPL-3_FM_128M.sf2", "CC-BY-SA-4.0"),
        SoundFont("freepats", "freepats", Path("/etc/timidity/freepats.cfg"), "GPL-2+ with exception", "timidity"),
    )
}


@dataclass(frozen=True)
class Note:
    """A note: when it starts and how long it lasts (beats), its MIDI pitch and velocity, and its channel."""

    start: float
    length: float
    pitch: int
    velocity: int = 90
    channel: int = 0


@dataclass(frozen=True)
class Preset:
    """A sound of a soundfont; bank 128 is a drum kit."""

    bank: int
    program: int


def require_soundfonts(names: Iterable[str]) -> list[SoundFont]:
    """The named soundfonts.

    Raises:
        FileNotFoundError: If a soundfont or its player is not installed; the message names the Debian packages.
        ValueError: If a path leads to a soundfont that is kept for testing.
    """
    fonts = [SOUNDFONTS[name] for name in names]
    missing = {font.package for font in fonts if not font.path.exists()}
    missing |= {font.player for font in fonts if shutil.which(font.player) is None}
    if missing:
        packages = " ".join(sorted(missing))
        raise FileNotFoundError(f"Missing soundfonts or players; install them: apt-get install {packages}")
    for font in fonts:
        refuse_reserved(font.path)
    return fonts


def refuse_reserved(path: Path) -> None:
    """Raise a `ValueError` if the path leads to a soundfont that is kept for testing."""
    for reserved in RESERVED_SOUNDFONTS:
        if reserved in path.name or reserved in path.resolve().name:
            raise ValueError(f"{path} is kept for testing; render training data with another soundfont.")


def render(
    notes: Sequence[Note],
    presets: Sequence[Preset],
    font: SoundFont,
    beats_per_minute: float = 60.0,
    reverb: float = 0.4,
) -> np.ndarray:
    """Play notes with a soundfont.

    Args:
        notes (`Sequence[Note]`): The notes; `channel` indexes `presets`.
        presets (`Sequence[Preset]`): The sound of each channel.
        font (`SoundFont`): The soundfont.
        beats_per_minute (`float`): Speed.
        reverb (`float`): Strength of the reverberation, from 0 to 1.

    Returns:
        `np.ndarray` of shape `(samples,)`: Mono audio at 16 kHz, as loud as the player made it.

    Raises:
        RuntimeError: If the player fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        midi, wave = Path(folder, "notes.mid"), Path(folder, "notes.wav")
        midi.write_bytes(midi_file(notes, presets, beats_per_minute, reverb))
        command = player_command(font, midi, wave)
        result = subprocess.run(command, capture_output=True, timeout=RENDER_TIMEOUT_SECONDS, check=False)
        if result.returncode or not wave.exists():
            message = result.stderr.decode(errors="replace").strip()[-300:]
            raise RuntimeError(f"{font.player} could not play {font.path}: {message}")
        audio, rate = soundfile.read(wave, dtype="float32", always_2d=True)
    return soxr.resample(audio.mean(axis=1), rate, SAMPLING_RATE)


def player_command(font: SoundFont, midi: Path, wave: Path) -> list[str]:
    """The command that plays a MIDI file into a WAVE file."""
    rate = str(RENDER_RATE)
    if font.player == "timidity":
        return ["timidity", "-c", str(font.path), "-s", rate, "-Ow", "-idq", "-o", str(wave), str(midi)]
    options = ["-o", "synth.dynamic-sample-loading=1", "-g", "0.7", "-r", rate, "-F", str(wave)]
    return ["fluidsynth", "-niq", *options, str(font.path), str(midi)]


def midi_file(notes: Sequence[Note], presets: Sequence[Preset], beats_per_minute: float, reverb: float) -> bytes:
    """A standard MIDI file of one track."""
    microseconds = round(60_000_000 / beats_per_minute)
    events: list[tuple[int, int, bytes]] = [(0, 0, b"\xff\x51\x03" + microseconds.to_bytes(3, "big"))]
    for index, preset in enumerate(presets):
        channel = midi_channel(index, presets)
        bank = 0 if preset.bank == DRUM_BANK else preset.bank
        set_up = bytes(
            (0xB0 | channel, 0, bank, 0xB0 | channel, 91, round(127 * reverb), 0xC0 | channel, preset.program)
        )
        events += [(0, 1, set_up[:3]), (0, 1, set_up[3:6]), (0, 2, set_up[6:])]
    for note in notes:
        channel, start = midi_channel(note.channel, presets), round(note.start * TICKS_PER_BEAT)
        end = start + max(1, round(note.length * TICKS_PER_BEAT))
        events.append((start, 4, bytes((0x90 | channel, note.pitch, note.velocity))))
        events.append((end, 3, bytes((0x80 | channel, note.pitch, 0))))
    return header_chunk() + track_chunk(sorted(events))


def midi_channel(index: int, presets: Sequence[Preset]) -> int:
    """The MIDI channel of a preset: drum kits are on the tenth, the others leave it out."""
    if presets[index].bank == DRUM_BANK:
        return DRUM_CHANNEL
    return index if index < DRUM_CHANNEL else index + 1


def header_chunk() -> bytes:
    """The header of a MIDI file with one track."""
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, TICKS_PER_BEAT)


def track_chunk(events: Iterable[tuple[int, int, bytes]]) -> bytes:
    """A MIDI track from sorted events (tick, order within the tick, message)."""
    body, now = b"", 0
    for tick, _, message in events:
        body += variable_length(tick - now) + message
        now = tick
    body += b"\x00\xff\x2f\x00"
    return b"MTrk" + struct.pack(">I", len(body)) + body


def variable_length(value: int) -> bytes:
    """A MIDI variable-length number: seven bits a byte, the high bit set on all but the last."""
    parts = [value & 0x7F]
    while value := value >> 7:
        parts.append(0x80 | (value & 0x7F))
    return bytes(reversed(parts))
