"""Examples for the collator: a clip, an instruction, an answer.

Each example makes its choices (instruction, partners, levels, replacements) with a generator of its own, seeded by the
draw that the sampler numbers; so a resumed run, or one with other workers, makes the same ones.
"""

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch.utils.data import Dataset, IterableDataset, get_worker_info

from modeling_salmonn.data.clips import USUAL_SECONDS, CachedClips, ClipReader, UnreadableClipError, clip_name
from modeling_salmonn.data.mixing import join_clips, overlap_clips
from modeling_salmonn.data.prompts import choose_prompt, field_values, format_prompt, prompt_fields, with_aliases
from modeling_salmonn.data.rows import Row, Rows, row_clips
from modeling_salmonn.data.sampling import MixtureSampler, task_shares
from modeling_salmonn.processing.audio_segments_salmonn import MEL_FRAMES_PER_SECOND, AudioLayout


Example: TypeAlias = dict[str, Any]

OVERLAP_TASK = "overlapped_speech"
VERIFICATION_TASK = "speaker_verification"
CHARACTERS_PER_TOKEN = 4  # of text, roughly
SAME_TASK_ATTEMPTS, ATTEMPTS = 20, 100


@dataclass(frozen=True)
class MadeOnTheFly:
    """Rows that are made of others: how many an epoch counts, and of what."""

    overlap: int = 0  # mixtures of two rows of `overlap_task`
    overlap_task: str = "asr"
    overlap_level_db: float = 5.0  # largest difference between the two voices
    verification: int = 0  # pairs of rows with a `speaker`, half of them of one


class ExampleMaker:
    """Turns a row into an example, with an instruction of its task out of `load_prompts`."""

    def __init__(self, prompts: Mapping[str, list[str]], reader: ClipReader | CachedClips):
        self.prompts = with_aliases(prompts)
        self.reader = reader

    def make(self, row: Row, rng: random.Random) -> Example:
        """The example of a row, with an instruction drawn by `rng`."""
        return {
            "audio": self.read(row),
            "path": row.get("path"),
            "instruction": self.instruction(row, rng),
            "answer": row["text"],
            "task": row["task"],
            "alignment_text": row.get("alignment_text"),
            "alignment_words": row.get("alignment_words"),
        }

    def read(self, row: Row) -> Any:
        """Samples of the row's clips; `None` for a row without audio, and where a cache has them."""
        samples = [self.reader.read(clip) for clip in row_clips(row)]
        present = [clip for clip in samples if clip is not None]
        return join_clips(present) if present else None

    def instruction(self, row: Row, rng: random.Random) -> str:
        """The row's own prompt, or one of its task's, with the fields filled in."""
        if row.get("prompt"):
            return format_prompt(row["prompt"], **field_values(row))
        return choose_prompt(self.prompts, row["task"], rng, **field_values(row))


class ExampleSet(Dataset):
    """Examples of rows, and of mixtures and pairs of rows that are made on the fly.

    Args:
        rows, maker: the rows, and what turns them into examples.
        made: what to make of them besides.
        task_weights, temperature, examples_per_epoch: of `sampler()`; see `MixtureSampler`.
        group_lengths: the model's layout of audio tokens, to make batches of like lengths; `None` leaves them random.
        seed: of the choices that the examples make.

    Raises:
        ValueError: if a task has no instructions, or there is nothing to mix or to pair.
    """

    def __init__(
        self,
        rows: Rows,
        maker: ExampleMaker,
        made: MadeOnTheFly | None = None,
        task_weights: Mapping[str, float] | None = None,
        temperature: float = 1.0,
        examples_per_epoch: int | None = None,
        group_lengths: AudioLayout | None = None,
        seed: int = 0,
    ):
        self.rows = rows
        self.maker = maker
        self.made = made or MadeOnTheFly()
        self.task_weights = task_weights
        self.temperature = temperature
        self.examples_per_epoch = examples_per_epoch
        self.group_lengths = group_lengths
        self.seed = seed
        self.row_tasks: list[str] = rows.column("task")
        # Examples are numbered: all rows, then mixtures, then pairs.
        self.tasks = self.row_tasks + [OVERLAP_TASK] * self.made.overlap + [VERIFICATION_TASK] * self.made.verification
        self.members = defaultdict(list)  # rows of each task
        for index, task in enumerate(self.row_tasks):
            self.members[task].append(index)
        self.voices = self._rows_with_clips(self.made.overlap_task) if self.made.overlap else []
        self.speakers = self._group_speakers() if self.made.verification else {}
        self._check_instructions()
        self._check_made()

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, key: int | tuple[int, int]) -> Example:
        index, draw = key if isinstance(key, tuple) else (key, key)
        rng = random.Random(f"{self.seed}/{draw}")
        task = self.tasks[index]
        for attempt in range(ATTEMPTS):
            with suppress(UnreadableClipError):  # it has been reported
                return self._make(index, rng)
            if task in self.members:  # mixtures and pairs simply draw other rows
                index = rng.choice(self.members[task] if attempt < SAME_TASK_ATTEMPTS else range(len(self.rows)))
        raise ValueError(f"No clip of the task {task!r} can be read, nor could {ATTEMPTS} tries find another.")

    def by_task(self) -> dict[str, "ExampleSet"]:
        """One set per task, in the rows' order."""
        sets = {}
        for task in self.members:
            rows = self.rows.select([own == task for own in self.row_tasks])
            sets[task] = ExampleSet(rows, self.maker, seed=self.seed)
        return sets

    def sampler(self, batch_size: int, seed: int) -> MixtureSampler:
        """Sampler of whole batches of `batch_size`, over all processes."""
        shares = task_shares(Counter(self.tasks), self.task_weights, self.temperature)
        weights = self.rows.column("weight", 1.0) + [1.0] * (len(self) - len(self.rows))
        lengths = self.lengths(self.group_lengths) if self.group_lengths else None
        return MixtureSampler(self.tasks, shares, batch_size, weights, lengths, self.examples_per_epoch, seed)

    def lengths(self, layout: AudioLayout) -> list[float]:
        """How many tokens each example has: of audio, and about how many of text."""
        own = []
        for known, text in zip(self.rows.seconds(), self.rows.column("text"), strict=True):
            seconds = USUAL_SECONDS if known is None else known
            audio_tokens = layout.num_audio_tokens(round(seconds * MEL_FRAMES_PER_SECOND))
            own.append(audio_tokens + len(text) / CHARACTERS_PER_TOKEN)
        # What is made on the fly has two clips, which are not known before they are drawn.
        two_clips = 2 * sum(own) / len(own)
        return own + [two_clips] * (len(self) - len(own))

    def _make(self, index: int, rng: random.Random) -> Example:
        if index < len(self.rows):
            return self.maker.make(self.rows[index], rng)
        if self.tasks[index] == OVERLAP_TASK:
            return self._overlap(rng)
        return self._verification(rng)

    def _overlap(self, rng: random.Random) -> Example:
        """Two voices at once; the answer has the one that sets in first on its first line."""
        indices = rng.sample(self.voices, 2)
        first, second = self.rows[indices[0]], self.rows[indices[1]]
        example = self.maker.make({"task": OVERLAP_TASK, "text": f"{first['text']}\n{second['text']}"}, rng)
        voices = self.maker.read(first), self.maker.read(second)
        return example | {"audio": overlap_clips(*voices, self.made.overlap_level_db, rng)}

    def _verification(self, rng: random.Random) -> Example:
        """Two utterances one after the other, of one speaker or of two."""
        same = rng.random() < 0.5
        if same:
            speaker = rng.choice([name for name, rows in self.speakers.items() if len(rows) > 1])
            first, second = rng.sample(self.speakers[speaker], 2)
        else:
            names = rng.sample(list(self.speakers), 2)
            first, second = rng.choice(self.speakers[names[0]]), rng.choice(self.speakers[names[1]])
        example = self.maker.make({"task": VERIFICATION_TASK, "text": "Yes" if same else "No"}, rng)
        voices = [self.maker.read(self.rows[first]), self.maker.read(self.rows[second])]
        return example | {"audio": join_clips(voices)}

    def _rows_with_clips(self, task: str) -> list[int]:
        """Rows of a task but for those of text alone, of which no mixture can be made."""
        paths, joined = self.rows.column("path"), self.rows.column("expand_wav")
        return [index for index in self.members.get(task, []) if paths[index] or joined[index]]

    def _group_speakers(self) -> dict[str | float, list[int]]:
        """Rows of each speaker, one of each utterance: a manifest may hold a clip under several tasks."""
        speakers: dict[str | float, dict[tuple[str, ...], int]] = defaultdict(dict)
        for index, speaker in enumerate(self.rows.column("speaker")):
            if speaker not in (None, ""):  # 0 is one too
                utterance = tuple(clip_name(clip) for clip in row_clips(self.rows[index]))
                if utterance:  # a row of text alone has none
                    speakers[speaker].setdefault(utterance, index)
        return {speaker: list(utterances.values()) for speaker, utterances in speakers.items()}

    def _check_instructions(self) -> None:
        prompts = self.rows.column("prompt") + [None] * (len(self) - len(self.rows))
        unprompted = {task for task, prompt in zip(self.tasks, prompts, strict=True) if not prompt}
        unknown = sorted(unprompted - self.maker.prompts.keys())
        if unknown:
            raise ValueError(
                f"There are no instructions for the tasks {unknown}; add them to the prompts file, which has "
                f"{sorted(self.maker.prompts)}, or give these rows a 'prompt'."
            )
        self._check_fields(unprompted)

    def _check_made(self) -> None:
        if self.made.overlap and len(self.voices) < 2:
            raise ValueError(
                f"overlap_examples needs two clips of the task {self.made.overlap_task!r}, but the data have "
                f"{len(self.voices)} of it, and the tasks {sorted(self.members)}; set overlap_task."
            )
        if self.made.verification and (
            len(self.speakers) < 2 or max(len(rows) for rows in self.speakers.values()) < 2
        ):
            raise ValueError(
                "verification_examples needs clips of two speakers, and two clips of one; give rows a 'speaker'."
            )
        if isinstance(self.maker.reader, CachedClips):
            if self.made.overlap or self.made.verification:
                raise ValueError("A feature cache does not hold clips made on the fly; leave feature_cache out.")
            if any(self.rows.column("expand_wav")):
                raise ValueError("A feature cache does not hold joined clips (expand_wav); leave feature_cache out.")

    def _check_fields(self, unprompted: set[str]) -> None:
        """All rows have what their own prompt names, or what any instruction of their task does."""
        of_tasks = {task: prompt_fields(" ".join(self.maker.prompts[task])) for task in unprompted}
        # Examples that are made on the fly have no columns, and instructions without fields.
        prompts = self.rows.column("prompt")
        needed = []
        for task, prompt in zip(self.row_tasks, prompts, strict=True):
            needed.append(prompt_fields(prompt) if prompt else of_tasks[task])
        names = {name for fields in needed for name in fields}
        columns = {name: self.rows.column(name) for name in names | {"Q"}} if names else {}
        for index, fields in enumerate(needed):
            values = field_values({name: columns[name][index] for name in [*fields, "Q"]}) if fields else {}
            lacking = [name for name in fields if name not in values]
            if lacking:
                raise self._lacking_field(index, prompts[index], lacking[0])

    def _lacking_field(self, index: int, prompt: str | None, name: str) -> ValueError:
        place = self.rows.place(index)
        if prompt:
            return ValueError(
                f"The prompt {prompt!r:.80} names {{{name}}}, which {place} lacks; give it a {name!r}, or leave the "
                "braces out."
            )
        return ValueError(
            f"Instructions of the task {self.row_tasks[index]!r} name {{{name}}}, which {place} lacks; give it a "
            f"{name!r}, or a 'prompt' of its own."
        )


class ExampleStream(IterableDataset):
    """Examples of streamed rows without end: pass after pass, the sources drawn from at random until all are used up.

    The passes are one iteration, so that the batches which a resumed run skips are those that it has had, however many
    passes they were. `max_steps` says where training ends.

    Args:
        streams: calls that start a source anew, given the epoch.
        maker: turns rows into examples.
        weights: how often each source is drawn from, 0 for not at all; equally if not given.
        seed: of the draws, and of the choices that the examples make.
    """

    def __init__(
        self,
        streams: Sequence[Callable[[int], Iterable[Row]]],
        maker: ExampleMaker,
        weights: Sequence[float] | None = None,
        seed: int = 0,
    ):
        self.streams = list(streams)
        self.maker = maker
        self.weights = list(weights or [1.0] * len(streams))
        self.seed = seed

    def __iter__(self) -> Iterator[Example]:
        for epoch in itertools.count():
            found = False
            for draw, row in enumerate(self._rows(epoch)):
                with suppress(UnreadableClipError):  # the next row takes its place
                    yield self.maker.make(row, random.Random(f"{self.seed}/{epoch}/{draw}"))
                    found = True
            worker = get_worker_info()
            if not found and worker is not None and worker.id > 0:
                return  # there are fewer shards than workers; the first one has rows
            if not found:
                raise ValueError(
                    "The streams have no row that can be used; look at their rows, weights and bad clips."
                )

    def _rows(self, epoch: int) -> Iterator[Row]:
        rng = random.Random(f"{self.seed}/{epoch}")
        weights = {source: weight for source, weight in enumerate(self.weights) if weight > 0}
        iterators = [iter(stream(epoch)) for stream in self.streams]
        while weights:
            (source,) = rng.choices(list(weights), list(weights.values()))
            row = next(iterators[source], None)
            if row is None:  # used up; the others are drawn from until they are too
                del weights[source]
            else:
                yield row
