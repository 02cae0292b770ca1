"""Runs a stage: `salmonn train STAGE.yaml [key=value ...]`."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
import typer
from safetensors.torch import load_file
from transformers import set_seed
from transformers.trainer_utils import TrainOutput

from modeling_salmonn.base_weights_salmonn import load_base_weights
from modeling_salmonn.configuration_salmonn import SalmonnConfig
from modeling_salmonn.data.clips import BadClips, CachedClips, ClipReader, clip_name
from modeling_salmonn.data.collator import SalmonnCollator
from modeling_salmonn.data.encoder_cache import EncoderCache, is_file_clip
from modeling_salmonn.data.examples import ExampleMaker, ExampleSet, ExampleStream, MadeOnTheFly
from modeling_salmonn.data.prompts import load_prompts
from modeling_salmonn.data.rows import Row, load_rows, load_stream
from modeling_salmonn.data.sampling import task_shares
from modeling_salmonn.data.sources import DataSource, parse_sources
from modeling_salmonn.data.word_pieces import frequent_pieces
from modeling_salmonn.hub.assembly import assemble_model, build_processor, load_config
from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.processing.audio_segments_salmonn import AudioLayout
from modeling_salmonn.processing.processing_salmonn import SalmonnProcessor
from modeling_salmonn.training.alignment import AlignmentHead
from modeling_salmonn.training.arguments import SalmonnTrainingArguments, parse_arguments
from modeling_salmonn.training.callbacks import SampleCallback
from modeling_salmonn.training.checkpoints import last_complete_checkpoint, refuse_earlier_run
from modeling_salmonn.training.dry_run import dry_run
from modeling_salmonn.training.overfitting import OverfittingCallback
from modeling_salmonn.training.stages import prepare_stage
from modeling_salmonn.training.trainer import ALIGNMENT_FILE, SalmonnTrainer, read_word_pieces
from modeling_salmonn.training.warm_start import warm_start_stage


logger = logging.getLogger(__name__)

BAD_CLIPS_FILE = "bad_clips.txt"
NEEDS_ALL_ROWS = (
    "overlap_examples", "verification_examples", "task_temperature", "examples_per_epoch", "alignment_min_count",
)  # fmt: skip


def train(arguments: SalmonnTrainingArguments) -> TrainOutput:
    """Train a stage from beginning to end, or from its last complete checkpoint, and save the result."""
    checkpoint = find_checkpoint(arguments)
    return run_training(build_trainer(arguments, resumed=checkpoint is not None), checkpoint)


def run_training(trainer: SalmonnTrainer, checkpoint: str | None) -> TrainOutput:
    """Train, save the model into the output folder, and log the metrics."""
    output = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    return output


def build_trainer(arguments: SalmonnTrainingArguments, resumed: bool = False) -> SalmonnTrainer:
    """The trainer of a stage with its model and data; a resumed run keeps its bad clips, and has no warm start."""
    processor = load_processor(arguments)
    train_data, eval_data = build_data(arguments, processor, resumed)  # first: its mistakes are told at once
    set_seed(arguments.seed)  # of what is made afresh: connector, adapter, head
    model = load_model(arguments, processor)
    prepare_stage(model, arguments.train_lora, arguments.train_speech_encoder, arguments.train_audio_encoder)
    cache = build_cache(arguments, model, processor, [train_data, *eval_data.values()])
    head = build_alignment_head(arguments, model, processor, train_data)
    if head is not None and cache is not None and arguments.alignment_epochs and not resumed:
        train_rows, eval_rows = _readable_rows([train_data]), _readable_rows(eval_data.values())
        warm_start_stage(arguments, model, head, cache, processor.tokenizer, train_rows, eval_rows)
    uses_head = arguments.alignment_weight > 0
    collator = SalmonnCollator(processor, cache, uses_head, None if head is None else head.pieces)
    trainer = SalmonnTrainer(
        model=model,
        args=arguments,
        data_collator=collator,
        train_dataset=train_data,
        eval_dataset=eval_data or None,
        processing_class=processor,
        alignment_head=head if uses_head else None,
    )
    if eval_data and arguments.sample_new_tokens:
        samples = [examples[0] for examples in eval_data.values()]
        trainer.add_callback(SampleCallback(trainer, samples, collator, arguments.sample_new_tokens))
    if arguments.probes:
        prompts = train_data.maker.prompts
        trainer.add_callback(OverfittingCallback(trainer, arguments.probes, processor, prompts))
    return trainer


def _readable_rows(data: Iterable[Any]) -> list[Row]:
    """Rows of examples whose clips the cache has."""
    rows = []
    for examples in data:
        bad_clips = examples.maker.reader.bad_clips.names
        rows += [row for row in examples.rows if row.get("path") not in bad_clips]
    return rows


def stage_config(arguments: SalmonnTrainingArguments) -> SalmonnConfig:
    """The configuration of the model to train; a `ValueError` if neither `model` nor `config` is given."""
    source = arguments.config or arguments.model
    if source is None:
        raise ValueError("Give model, a SALMONN to start from, or config, which names the bases of a new one.")
    return load_config(source)


def load_processor(arguments: SalmonnTrainingArguments) -> SalmonnProcessor:
    """The processor of the model to train; of a new one: its features, and its language model's tokenizer."""
    if arguments.model is not None:
        return SalmonnProcessor.from_pretrained(arguments.model)
    config = stage_config(arguments)
    if config.text_model_id is None:
        raise ValueError("The configuration names no language model; set text_model_id to a Hub id or a folder.")
    return build_processor(config, config.text_model_id)


def load_model(arguments: SalmonnTrainingArguments, processor: SalmonnProcessor) -> SalmonnForConditionalGeneration:
    """The model to train: a SALMONN, or bases with a fresh connector between them."""
    dtype = getattr(torch, arguments.dtype)
    options: dict[str, Any] = {}
    if arguments.attn_implementation is not None:
        options["attn_implementation"] = arguments.attn_implementation
    if arguments.model is not None:
        return SalmonnForConditionalGeneration.from_pretrained(arguments.model, dtype=dtype, **options)
    config = stage_config(arguments)
    config.audio_token_id = processor.audio_token_id
    return assemble_model(config, load_base_weights(config, dtype), dtype, **options)


def build_data(
    arguments: SalmonnTrainingArguments, processor: SalmonnProcessor, resumed: bool = False
) -> tuple[ExampleSet | ExampleStream, dict[str, ExampleSet]]:
    """Training examples, and evaluation examples by task.

    Raises:
        ValueError: if there are no data, streamed and other sources at once, or settings that streams cannot keep to.
    """
    file = Path(arguments.output_dir or ".") / BAD_CLIPS_FILE
    if not resumed and arguments.should_save:
        file.unlink(missing_ok=True)  # clips may have been repaired since
    bad_clips = BadClips(arguments.max_bad_clips, file)
    reader: ClipReader | CachedClips = CachedClips(bad_clips)
    if not arguments.feature_cache:
        reader = ClipReader(processor.feature_extractor, bad_clips, arguments.max_audio_seconds)
    maker = ExampleMaker(load_prompts(arguments.prompts), reader)
    eval_data = {}
    if arguments.eval_data:
        sources = parse_sources(arguments.eval_data, arguments.audio_root)
        rows = load_rows(sources, max_seconds=arguments.max_audio_seconds)
        eval_data = ExampleSet(rows, maker, seed=arguments.seed).by_task()
    return _training_examples(arguments, maker, processor.feature_extractor.audio_layout), eval_data


def _training_examples(
    arguments: SalmonnTrainingArguments, maker: ExampleMaker, layout: AudioLayout
) -> ExampleSet | ExampleStream:
    if not arguments.train_data:
        raise ValueError("There is nothing to train on; set train_data, for instance train_data=rows.jsonl.")
    sources = parse_sources(arguments.train_data, arguments.audio_root)
    if any(source.streaming for source in sources):
        if not all(source.streaming for source in sources):
            raise ValueError("Some sources of train_data are streaming and some are not; set all alike.")
        streams: list[Callable[[int], Iterable]] = [partial(load_stream, source, arguments.seed) for source in sources]
        return ExampleStream(streams, maker, stream_weights(arguments, sources), arguments.seed)
    return ExampleSet(
        load_rows(sources, max_seconds=arguments.max_audio_seconds),
        maker,
        MadeOnTheFly(
            arguments.overlap_examples,
            arguments.overlap_task,
            arguments.overlap_level_db,
            arguments.verification_examples,
        ),
        task_weights=arguments.task_weights,
        temperature=arguments.task_temperature,
        examples_per_epoch=arguments.examples_per_epoch,
        group_lengths=layout if arguments.group_lengths else None,
        seed=arguments.seed,
    )


def stream_weights(arguments: SalmonnTrainingArguments, sources: Sequence[DataSource]) -> list[float]:
    """How often each streaming source is drawn from; settings that need all rows are refused by a `ValueError`."""
    defaults = {item.name: item.default for item in fields(SalmonnTrainingArguments)}
    changed = [name for name in NEEDS_ALL_ROWS if getattr(arguments, name) != defaults[name]]
    if changed:
        raise ValueError(
            f"{', '.join(changed)} needs all rows to be known, but train_data is streaming; leave it out, or set "
            "streaming to false."
        )
    tasks = Counter(source.task or "" for source in sources)
    unknown = sorted(arguments.task_weights.keys() - tasks.keys())
    if unknown:
        raise ValueError(
            f"task_weights has {unknown}, but streaming sources are weighted by their own task, which is one of "
            f"{sorted(tasks.keys() - {''})}; give each kind of row a source with its task."
        )
    task_shares(tasks, arguments.task_weights)  # refuses negative ones, and nothing but zeros
    return [arguments.task_weights.get(source.task or "", 1.0) for source in sources]


def build_cache(
    arguments: SalmonnTrainingArguments,
    model: SalmonnForConditionalGeneration,
    processor: SalmonnProcessor,
    data: Sequence[ExampleSet | ExampleStream],
) -> EncoderCache | None:
    """The cache of the encoders' outputs, filled with all clips; `None` if there is to be none."""
    if not arguments.feature_cache:
        return None
    clips: dict[str, None] = {}  # each once, in the order of the rows
    for examples in data:
        if isinstance(examples, ExampleStream):
            raise ValueError("A feature cache cannot be filled from streaming sources; leave feature_cache out.")
        for row in examples.rows:
            clip = row.get("path")
            if clip and not is_file_clip(clip):
                place = "behind a URL" if isinstance(clip, str) else "within a table"
                raise ValueError(
                    f"A feature cache holds clips of files, but the data have {clip_name(clip)} {place}; write the "
                    "clips to files, or leave feature_cache out."
                )
            if clip:
                clips[clip] = None
    cache = EncoderCache(arguments.feature_cache, model.to(arguments.device), processor.feature_extractor)
    bad_clips = data[0].maker.reader.bad_clips
    # Other processes find all states there, but look for bad clips of their own.
    with arguments.main_process_first(desc="encoding the clips"):
        for clip, error in cache.encode(list(clips)):
            bad_clips.report(clip, error)
    return cache


def build_alignment_head(
    arguments: SalmonnTrainingArguments,
    model: SalmonnForConditionalGeneration,
    processor: SalmonnProcessor,
    train_data: ExampleSet | ExampleStream,
) -> AlignmentHead | None:
    """The head of the alignment loss, as an earlier stage has left it or fresh; `None` if there is no such loss."""
    if arguments.alignment_weight <= 0 and not arguments.alignment_epochs:
        return None
    trained = Path(arguments.model or "") / ALIGNMENT_FILE
    is_trained = arguments.model is not None and trained.is_file()
    pieces = read_word_pieces(trained, processor.tokenizer) if is_trained else None
    if pieces is None and arguments.alignment_min_count and isinstance(train_data, ExampleSet):  # streams are refused
        texts = [row["alignment_text"] for row in train_data.rows if row.get("alignment_text")]
        pieces = frequent_pieces(texts, processor.tokenizer, arguments.alignment_min_count)
    head = AlignmentHead(model.get_input_embeddings().weight, pieces=pieces)
    if is_trained:
        head.load_state_dict(load_file(trained))
    return head


def find_checkpoint(arguments: SalmonnTrainingArguments) -> str | None:
    """The checkpoint to resume from: the one that is named, or the newest complete one of the output folder.

    Raises:
        ValueError: if the one that is named does not exist, or a new run would be written among an earlier one.
    """
    wanted = arguments.resume_from_checkpoint
    if not wanted:
        refuse_earlier_run(str(arguments.output_dir))
        return None
    if isinstance(wanted, str):
        if not os.path.isdir(wanted):
            raise ValueError(f"There is no checkpoint {wanted}; give its folder, or true for the newest one.")
        return wanted
    found = last_complete_checkpoint(str(arguments.output_dir))
    if found is None:
        logger.warning("There is no complete checkpoint in %s; training starts anew.", arguments.output_dir)
        return None
    logger.info("Resuming from %s.", found)
    return str(found)


def prepare(words: Sequence[str]) -> tuple[SalmonnTrainer, str | None] | None:
    """The trainer that the words of a command line ask for, and its checkpoint; `None` after a dry run."""
    arguments = parse_arguments(words)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("modeling_salmonn").setLevel(logging.INFO if arguments.should_log else logging.ERROR)
    if arguments.dry_run:
        report = dry_run(arguments, stage_config(arguments))
        if arguments.should_log:
            typer.echo(report)
        return None
    checkpoint = find_checkpoint(arguments)
    return build_trainer(arguments, resumed=checkpoint is not None), checkpoint
