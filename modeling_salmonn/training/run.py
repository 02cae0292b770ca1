"""Runs a stage.

```
salmonn train STAGE.yaml [key=value ...]
accelerate launch -m modeling_salmonn train STAGE.yaml [key=value ...]
```
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
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
from modeling_salmonn.data.clips import BadClips, CachedClips, ClipReader, clip_name
from modeling_salmonn.data.collator import SalmonnCollator
from modeling_salmonn.data.encoder_cache import EncoderCache
from modeling_salmonn.data.examples import ExampleMaker, ExampleSet, ExampleStream, MadeOnTheFly
from modeling_salmonn.data.prompts import load_prompts
from modeling_salmonn.data.rows import Row, load_rows, load_stream
from modeling_salmonn.data.sampling import task_shares
from modeling_salmonn.data.sources import DataSource, parse_sources
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
from modeling_salmonn.training.trainer import ALIGNMENT_FILE, SalmonnTrainer
from modeling_salmonn.training.warm_start import warm_start_stage


logger = logging.getLogger(__name__)

BAD_CLIPS_FILE = "bad_clips.txt"
NEEDS_ALL_ROWS = ("overlap_examples", "verification_examples", "task_temperature", "examples_per_epoch")


def train(arguments: SalmonnTrainingArguments) -> TrainOutput:
    """Train a stage from beginning to end, or from its last complete checkpoint, and save the result.

    Args:
        arguments: model, data and stage; `resume_from_checkpoint` is a checkpoint, or `true` for the newest one.

    Raises:
        ValueError: if model or data cannot be read, naming what is wrong.
    """
    checkpoint = find_checkpoint(arguments)
    return run_training(build_trainer(arguments, resumed=checkpoint is not None), checkpoint)


def run_training(trainer: SalmonnTrainer, checkpoint: str | None) -> TrainOutput:
    """Train, save the model into the output folder, and log the metrics."""
    output = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    return output


def build_trainer(arguments: SalmonnTrainingArguments, resumed: bool = False) -> SalmonnTrainer:
    """The trainer of a stage with its model and data.

    Args:
        arguments: model, data and stage.
        resumed: an earlier run is resumed: its list of bad clips is kept, its warm start is over.
    """
    processor = load_processor(arguments)
    train_data, eval_data = build_data(arguments, processor, resumed)  # first: its mistakes are told at once
    set_seed(arguments.seed)
    model = load_model(arguments, processor)
    prepare_stage(model, arguments.train_lora, arguments.train_speech_encoder, arguments.train_audio_encoder)
    cache = build_cache(arguments, model, processor, [train_data, *eval_data.values()])
    head = build_alignment_head(arguments, model)
    if head is not None and cache is not None and arguments.alignment_epochs and not resumed:
        bad = train_data.maker.reader.bad_clips.names
        train_rows = _readable_rows([train_data], bad)
        eval_rows = _readable_rows(eval_data.values(), bad)
        warm_start_stage(arguments, model, head, cache, processor.tokenizer, train_rows, eval_rows)
    uses_head = arguments.alignment_weight > 0
    collator = SalmonnCollator(processor, cache, alignment=uses_head)
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
        prompts = load_prompts(arguments.prompts)
        trainer.add_callback(OverfittingCallback(trainer, arguments.probes, processor, prompts))
    return trainer


def _readable_rows(data: Iterable[Any], bad_clips: Container[str]) -> list[Row]:
    return [row for examples in data for row in examples.rows if row.get("path") not in bad_clips]


def config_source(arguments: SalmonnTrainingArguments) -> str:
    """Where the model's configuration comes from.

    Raises:
        ValueError: if neither `model` nor `config` is given.
    """
    source = arguments.config or arguments.model
    if source is None:
        raise ValueError("Give model, a SALMONN to start from, or config, which names the bases of a new one.")
    return source


def load_processor(arguments: SalmonnTrainingArguments) -> SalmonnProcessor:
    """The processor of the model to train; of a new one: its features, and its language model's tokenizer.

    Raises:
        ValueError: if neither `model` nor `config` is given, or `config` names no language model.
        OSError: if the model is not there.
    """
    if arguments.model is not None:
        return SalmonnProcessor.from_pretrained(arguments.model)
    config = load_config(config_source(arguments))
    if config.text_model_id is None:
        raise ValueError("The configuration names no language model; set text_model_id to a Hub id or a folder.")
    return build_processor(config, config.text_model_id)


def load_model(arguments: SalmonnTrainingArguments, processor: SalmonnProcessor) -> SalmonnForConditionalGeneration:
    """The model to train: a SALMONN, or bases with a fresh connector between them.

    Args:
        arguments: name the model, or the configuration of a new one.
        processor: the model's; a new model takes the id of its audio placeholder.

    Raises:
        ValueError: if weights are missing or do not fit.
    """
    dtype = getattr(torch, arguments.dtype)
    options: dict[str, Any] = {}
    if arguments.attn_implementation is not None:
        options["attn_implementation"] = arguments.attn_implementation
    if arguments.model is not None:
        return SalmonnForConditionalGeneration.from_pretrained(arguments.model, dtype=dtype, **options)
    config = load_config(config_source(arguments))
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
        file.unlink(missing_ok=True)
    bad_clips = BadClips(arguments.max_bad_clips, file)
    reader: ClipReader | CachedClips = CachedClips(bad_clips)
    if not arguments.feature_cache:
        reader = ClipReader(processor.feature_extractor, bad_clips, arguments.max_audio_seconds)
    maker = ExampleMaker(load_prompts(arguments.prompts), reader)
    eval_data = {}
    if arguments.eval_data:
        rows = load_rows(
            parse_sources(arguments.eval_data, arguments.audio_root), max_seconds=arguments.max_audio_seconds
        )
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
    """How often each streaming source is drawn from.

    Raises:
        ValueError: for settings that need all rows to be known, and for weights that no source goes by.
    """
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
    """The cache of the encoders' outputs, filled with all clips; `None` if there is to be none.

    Raises:
        ValueError: for data that a cache cannot hold.
    """
    if not arguments.feature_cache:
        return None
    clips: dict[str, None] = {}  # each once, in the order of the rows
    for examples in data:
        if isinstance(examples, ExampleStream):
            raise ValueError("A feature cache cannot be filled from streaming sources; leave feature_cache out.")
        for row in examples.rows:
            clip = row.get("path")
            if clip and not isinstance(clip, str):
                raise ValueError(
                    f"A feature cache holds clips of files, but the data have {clip_name(clip)} within a table; write "
                    "the clips to files, or leave feature_cache out."
                )
            if clip:
                clips[clip] = None
    cache = EncoderCache(arguments.feature_cache, model.to(arguments.device), processor.feature_extractor)
    bad_clips = data[0].maker.reader.bad_clips
    with arguments.main_process_first(desc="encoding the clips"):
        for clip, error in cache.encode(list(clips)):
            bad_clips.report(clip, error)
    return cache


def build_alignment_head(
    arguments: SalmonnTrainingArguments, model: SalmonnForConditionalGeneration
) -> AlignmentHead | None:
    """The head of the alignment loss, as an earlier stage has left it or fresh; `None` if there is no such loss."""
    if arguments.alignment_weight <= 0 and not arguments.alignment_epochs:
        return None
    head = AlignmentHead(model.get_input_embeddings().weight)
    if arguments.model is not None:
        trained = Path(arguments.model) / ALIGNMENT_FILE
        if trained.is_file():
            head.load_state_dict(load_file(trained))
    return head


def find_checkpoint(arguments: SalmonnTrainingArguments) -> str | None:
    """The checkpoint to resume from: the one that is named, or the newest complete one of the output folder.

    Raises:
        ValueError: if the one that is named does not exist, or if a new run would leave its checkpoints among those of
            an earlier one, from which a resumed run could not tell them.
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
    """The trainer that the words of a command line ask for, and its checkpoint; `None` after a dry run.

    Raises:
        ValueError: if the words, the model or the data cannot be used.
    """
    arguments = parse_arguments(words)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("modeling_salmonn").setLevel(logging.INFO if arguments.should_log else logging.ERROR)
    if arguments.dry_run:
        report = dry_run(arguments, load_config(config_source(arguments)))
        if arguments.should_log:
            typer.echo(report)
        return None
    checkpoint = find_checkpoint(arguments)
    return build_trainer(arguments, resumed=checkpoint is not None), checkpoint
