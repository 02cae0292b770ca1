"""Soundfonts of Debian packages, and notes turned into 16 kHz audio with them.

- `tables/soundfonts.yaml` has the packages that bring them and their licences
- fluidsynth plays SF2 and SF3 files, TiMidity++ plays the GUS patches of `freepats`
- soundfonts that are kept for testing are refused, also behind a link
"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recipes.salmonn_smol.tables import read_table
from recipes.salmonn_smol.waveforms import read_any


RENDER_RATE = 32_000  # twice the wanted rate: the synthesizer's aliases end up above the band that is kept
TICKS_PER_BEAT = 480
DRUM_CHANNEL, DRUM_BANK = 9, 128
REVERB_CONTROL = 91  # of MIDI; 0 selects the bank
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


SOUNDFONTS: dict[str, SoundFont] = {}
for font_name, fields in read_table("soundfonts").items():
    SOUNDFONTS[font_name] = SoundFont(name=font_name, **fields | {"path": Path(fields["path"])})


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
        midi_file(notes, presets, beats_per_minute, reverb).save(midi)
        command = player_command(font, midi, wave)
        result = subprocess.run(command, capture_output=True, timeout=RENDER_TIMEOUT_SECONDS, check=False)
        if result.returncode or not wave.exists():
            message = result.stderr.decode(errors="replace").strip()[-300:]
            raise RuntimeError(f"{font.player} could not play {font.path}: {message}")
        return read_any(wave)


def player_command(font: SoundFont, midi: Path, wave: Path) -> list[str]:
    """The command that plays a MIDI file into a WAVE file."""
    rate = str(RENDER_RATE)
    if font.player == "timidity":
        return ["timidity", "-c", str(font.path), "-s", rate, "-Ow", "-idq", "-o", str(wave), str(midi)]
    options = ["-o", "synth.dynamic-sample-loading=1", "-g", "0.7", "-r", rate, "-F", str(wave)]
    return ["fluidsynth", "-niq", *options, str(font.path), str(midi)]


def midi_file(notes: Sequence[Note], presets: Sequence[Preset], beats_per_minute: float, reverb: float) -> Any:
    """A `mido.MidiFile` of one track."""
    from mido import Message, MetaMessage, MidiFile, MidiTrack, bpm2tempo

    events = [(0, 0, MetaMessage("set_tempo", tempo=bpm2tempo(beats_per_minute)))]
    for index, preset in enumerate(presets):
        channel = midi_channel(index, presets)
        bank = 0 if preset.bank == DRUM_BANK else preset.bank
        events += [
            (0, 1, Message("control_change", channel=channel, control=0, value=bank)),
            (0, 1, Message("control_change", channel=channel, control=REVERB_CONTROL, value=round(127 * reverb))),
            (0, 2, Message("program_change", channel=channel, program=preset.program)),
        ]
    for note in notes:
        channel, start = midi_channel(note.channel, presets), round(note.start * TICKS_PER_BEAT)
        end = start + max(1, round(note.length * TICKS_PER_BEAT))
        # at one tick, notes end before others begin: the next may have the same pitch
        events.append((end, 3, Message("note_off", channel=channel, note=note.pitch, velocity=0)))
        events.append((start, 4, Message("note_on", channel=channel, note=note.pitch, velocity=note.velocity)))
    track, now = MidiTrack(), 0
    for tick, _, message in sorted(events, key=lambda event: (event[0], event[1], event[2].bytes())):
        track.append(message.copy(time=tick - now))
        now = tick
    return MidiFile(type=0, ticks_per_beat=TICKS_PER_BEAT, tracks=[track])


def midi_channel(index: int, presets: Sequence[Preset]) -> int:
    """The MIDI channel of a preset: drum kits are on the tenth, the others leave it out."""
    if presets[index].bank == DRUM_BANK:
        return DRUM_CHANNEL
    return index if index < DRUM_CHANNEL else index + 1


__all__ = [
    "DRUM_BANK", "SOUNDFONTS", "Note", "Preset", "SoundFont", "midi_file", "refuse_reserved", "render",
    "require_soundfonts",
]  # fmt: skip
