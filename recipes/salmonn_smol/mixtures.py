"""Clips made of the corpus' clips: two voices at once, two utterances in a row, a voice over a sound.

Made once and not on the fly, so that their encoder states can be cached.
"""

import random
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from modeling_salmonn.data.mixing import join_clips, overlap_clips, relative_gain
from modeling_salmonn.data.rows import Row
from recipes.salmonn_smol.arguments import Corpus, Extra, Folder, Jobs, Seed
from recipes.salmonn_smol.audiofolder import MadeClip, digest_rows, read_audiofolders, write_audiofolder
from recipes.salmonn_smol.task_rows import speaker_of
from recipes.salmonn_smol.transcripts import plain_transcript
from recipes.salmonn_smol.waveforms import SAMPLING_RATE, read_clip


TASKS = ("overlapped_speech", "speaker_verification", "speech_over_sound")
COUNTS = {"train": 450, "validation": 50, "test": 50}
SHORTEST_VOICE_SECONDS, LONGEST_VOICE_SECONDS = 0.6, 6.0
OVERLAP_LEVEL_DB = 5.0
QUIETER_SOUND_DB = (3.0, 15.0)  # a sound lies below the voice by as much


class MixtureMaker:
    """Makes the clip of a name such as `overlapped_speech/000017.opus`; the name alone decides what it is.

    Args:
        rows: clips of one split, from `read_audiofolder`.
        seed: of all choices.
    """

    def __init__(self, rows: Sequence[Row], seed: int = 0):
        self.seed = seed
        self.voices = []
        for row in rows:
            text = plain_transcript(row["text"], row["seconds"]) if row["kind"] == "speech" else None
            if text and SHORTEST_VOICE_SECONDS < row["seconds"] < LONGEST_VOICE_SECONDS:
                self.voices.append(row | {"text": text})
        self.sounds = [row for row in rows if row["kind"] == "event" and row.get("sound_class")]
        speakers: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            speaker = speaker_of(row) if row["kind"] == "speech" else None
            if speaker and row["seconds"] > SHORTEST_VOICE_SECONDS:
                speakers[speaker].append(row)
        # one clip is enough if it can be cut in two, as a reader's is
        self.speakers = {
            name: own for name, own in speakers.items() if len(own) > 1 or own[0]["seconds"] > LONGEST_VOICE_SECONDS
        }

    def tasks(self) -> list[str]:
        """What these clips can make."""
        can = (len(self.voices) > 1, len(self.speakers) > 1, self.voices and self.sounds)
        return [task for task, enough in zip(TASKS, can, strict=True) if enough]

    def __call__(self, name: str) -> MadeClip:
        task = name.split("/")[0]
        rng = random.Random(f"{self.seed}/{name}")
        if task == "overlapped_speech":
            return self._overlap(rng)
        return self._pair(rng) if task == "speaker_verification" else self._voice_over_sound(rng)

    def _overlap(self, rng: random.Random) -> MadeClip:
        first, second = rng.sample(self.voices, 2)
        audio = overlap_clips(read_clip(first["path"]), read_clip(second["path"]), OVERLAP_LEVEL_DB, rng)
        return _mixture(audio, [first, second], task="overlapped_speech", text=f"{first['text']}\n{second['text']}")

    def _pair(self, rng: random.Random) -> MadeClip:
        same = rng.random() < 0.5
        names = rng.sample(sorted(self.speakers), 2)
        clips = self.speakers[names[0]]
        pair = [rng.choice(self.speakers[name]) for name in names]
        if same:
            pair = rng.sample(clips, 2) if len(clips) > 1 else clips * 2
        parts = [read_clip(row["path"]) for row in pair]
        if pair[0] is pair[1]:
            parts = np.array_split(parts[0], 2)
        audio = join_clips([part[: int(LONGEST_VOICE_SECONDS * SAMPLING_RATE)] for part in parts])
        return _mixture(audio, pair, task="speaker_verification", text="Yes." if same else "No.")

    def _voice_over_sound(self, rng: random.Random) -> MadeClip:
        """A voice with a sound below it: to write down, or to say what the sound is."""
        voice, sound = rng.choice(self.voices), rng.choice(self.sounds)
        speech, background = read_clip(voice["path"]), read_clip(sound["path"])
        level = relative_gain(background, speech, -rng.uniform(*QUIETER_SOUND_DB))
        length = max(len(speech), min(len(background), 2 * len(speech)))
        audio = np.zeros(length, np.float32)
        audio[: len(background[:length])] = level * background[:length]
        start = rng.randint(0, length - len(speech))
        audio[start : start + len(speech)] += speech
        audio /= max(1.0, float(np.abs(audio).max()))
        if rng.random() < 0.5:
            return _mixture(audio, [voice, sound], task="asr", text=voice["text"])
        question = "What is heard behind the voice?"
        answer = f"{sound['sound_class'].capitalize()}."
        return _mixture(audio, [voice, sound], task="audio_qa", question=question, text=answer)


def _mixture(audio: np.ndarray, parts: Sequence[Row], **row: str) -> MadeClip:
    origin = {name: "; ".join(dict.fromkeys(part[name] for part in parts)) for name in ("source", "licence")}
    return MadeClip(audio, {"kind": "mixture", **row, **origin, "label_origin": "labels of the parts"})


def make_mixtures(corpus: Corpus, folder: Folder, extra: Extra = None, seed: Seed = 0, jobs: Jobs = 1) -> None:
    """Make clips of two voices, of two utterances, and of a voice over a sound."""
    for split, count in COUNTS.items():
        rows = read_audiofolders([corpus / split, *((extra or []) if split == "train" else [])])
        maker = MixtureMaker(rows, seed)
        names = [f"{task}/{index:06d}.opus" for index in range(count) for task in maker.tasks()]
        write_audiofolder(folder / split, names, maker, {"seed": seed, "clips": digest_rows(rows)}, jobs)
