"""`salmonn activate MODEL ...`: activation tuning, all of it at once; or step by step, by a command for each."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


RUN = "run"


class RunByDefault(TyperGroup):
    """Commands of which `run` is the one that need not be named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take what begins with no command, and does not ask for help, as the arguments of `run`."""
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = [RUN, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    help="Activation tuning: let a model write long answers, tune it on them, compare before and after: "
    "salmonn activate MODEL --clips ... --output ..., or one step at a time.",
    cls=RunByDefault,
    no_args_is_help=True,
    subcommand_metavar="MODEL | COMMAND [ARGS]...",
)

Model = Annotated[str, typer.Argument(help="Folder or Hub id of a SALMONN model.")]
Clips = Annotated[str, typer.Option(help="Manifest or audio folder; its rows need nothing but a path.")]
Data = Annotated[list[str] | None, typer.Option(help="Rows of untrained tasks and of asr; can be repeated.")]
OutputFolder = Annotated[str, typer.Option(help="Folder to write to.")]
Prompts = Annotated[str | None, typer.Option(help="JSON file of instructions per task, before the bundled ones.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
Seed = Annotated[int, typer.Option(help="Seed of all choices.")]
Answers = Annotated[int, typer.Option(min=1, help="Answers to keep, each about another clip.")]
QuestionShare = Annotated[float, typer.Option(min=0, max=1, help="Share of clips with a question, not a story.")]
Discount = Annotated[float | None, typer.Option(min=0, help="LoRA scaling to write at; half of the trained one.")]
Tries = Annotated[int, typer.Option(min=1, help="Answers drawn about a clip until it is given up.")]
MinWords = Annotated[int, typer.Option(min=1, help="Shorter answers are not kept.")]
WrittenTokens = Annotated[int, typer.Option(min=1, help="Longest answer to write, in tokens.")]
Temperature = Annotated[float, typer.Option(help="Temperature of the sampling.")]
Steps = Annotated[int, typer.Option(min=1, help="Optimiser steps of one answer each.")]
LearningRate = Annotated[float, typer.Option(help="Constant learning rate.")]
Limit = Annotated[int, typer.Option(min=1, help="Rows of each task to compare on.")]
ComparedTokens = Annotated[int, typer.Option(min=1, help="Longest answer to compare, in tokens.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Clips answered at once.")]


@app.command(RUN)
def run_activation_command(
    model: Model,
    clips: Clips,
    output: OutputFolder,
    data: Data = None,
    answers: Answers = 12,
    question_share: QuestionShare = 0.25,
    lora_scale: Discount = None,
    tries: Tries = 4,
    min_words: MinWords = 40,
    max_new_tokens: WrittenTokens = 300,
    temperature: Temperature = 1.0,
    steps: Steps = 12,
    learning_rate: LearningRate = 3e-5,
    limit: Limit = 100,
    compared_tokens: ComparedTokens = 200,
    batch_size: BatchSize = 4,
    prompts: Prompts = None,
    dtype: Dtype = "float32",
    seed: Seed = 0,
) -> None:
    """Write, train and compare, as without a command's name; what was stopped goes on where it was."""
    with _checked(model):
        from modeling_salmonn.activation import tuning
        from modeling_salmonn.data.rows import load_rows

        report = tuning.run_activation(
            model,
            load_rows(clips, needs=("path",)),
            Path(output),
            _load_prompts(prompts),
            tuning.WritingSettings(
                answers=answers,
                question_share=question_share,
                lora_scale=lora_scale,
                seed=seed,
                tries=tries,
                min_words=min_words,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                batch_size=batch_size,
            ),
            tuning.TuningSettings(steps, learning_rate, seed, dtype),
            tuning.ComparisonSettings(limit, seed, compared_tokens, batch_size),
            load_rows(data) if data else None,
        )
        _say(report.written.summary())
        _say(tuning.loss_summary(report.losses))
        if report.comparison is None:
            _say("Nothing to compare on: all clips were written about; give more clips, or --data.")
        else:
            _show(report.comparison.table())


@app.command("write")
def write_answers_command(
    model: Model,
    clips: Clips,
    output: OutputFolder,
    answers: Answers = 12,
    question_share: QuestionShare = 0.25,
    lora_scale: Discount = None,
    tries: Tries = 4,
    min_words: MinWords = 40,
    max_new_tokens: WrittenTokens = 300,
    temperature: Temperature = 1.0,
    batch_size: BatchSize = 4,
    prompts: Prompts = None,
    dtype: Dtype = "float32",
    seed: Seed = 0,
) -> None:
    """Let a model write long answers at a discounted LoRA scale: answers.jsonl, to be read and changed."""
    with _checked(model):
        from modeling_salmonn.activation import tuning
        from modeling_salmonn.data.rows import load_rows

        settings = tuning.WritingSettings(
            answers=answers,
            question_share=question_share,
            lora_scale=lora_scale,
            seed=seed,
            tries=tries,
            min_words=min_words,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            batch_size=batch_size,
        )
        rows = load_rows(clips, needs=("path",))
        answerer = tuning.Answerer.from_pretrained(model, dtype)
        _say(tuning.write_answers(answerer, rows, Path(output), _load_prompts(prompts), settings).summary())


@app.command("train")
def tune_on_answers_command(
    model: Model,
    answers: Annotated[str, typer.Argument(help="Manifest of answers.")],
    output: OutputFolder,
    steps: Steps = 12,
    learning_rate: LearningRate = 3e-5,
    dtype: Dtype = "float32",
    seed: Seed = 0,
) -> None:
    """Tune a model on answers at its full LoRA scale, one answer a step."""
    with _checked(model):
        from modeling_salmonn.activation import tuning

        settings = tuning.TuningSettings(steps, learning_rate, seed, dtype)
        _say(tuning.loss_summary(tuning.tune_on_answers(model, Path(answers), Path(output), settings)))
        _say(f"Wrote {output}.")


@app.command("compare")
def compare_models_command(
    before: Model,
    after: Annotated[str, typer.Argument(help="Folder or Hub id of the tuned model.")],
    data: Annotated[list[str], typer.Option(help="Rows of untrained tasks and of asr; can be repeated.")],
    output: Annotated[str | None, typer.Option(help="Folder to write to; the tuned model's if not given.")] = None,
    limit: Limit = 100,
    max_new_tokens: ComparedTokens = 200,
    batch_size: BatchSize = 8,
    prompts: Prompts = None,
    dtype: Dtype = "float32",
    seed: Seed = 0,
) -> None:
    """Compare two models: following rate, diversity, repeat rate and word error rate by task."""
    with _checked(before, after):
        from modeling_salmonn.activation import tuning
        from modeling_salmonn.data.rows import load_rows

        if output is None and not os.path.isdir(after):
            raise ValueError(f"{after} is no folder to write the comparison to; give --output.")
        settings = tuning.ComparisonSettings(limit, seed, max_new_tokens, batch_size)
        rows = load_rows(data)
        comparison = tuning.compare_models(
            before, after, rows, Path(output or after), _load_prompts(prompts), settings, dtype
        )
        _show(comparison.table())


def _load_prompts(file: str | None) -> dict[str, list[str]]:
    """The bundled instructions, and those of a file, which win."""
    from modeling_salmonn.data.prompts import load_prompts

    return load_prompts() | load_prompts(file)


@contextmanager
def _checked(*models: str) -> Iterator[None]:
    """Errors in a line; models must not be mistyped folders."""
    from modeling_salmonn.commands.errors import readable_errors
    from modeling_salmonn.hub.saved_folder import require_salmonn

    with readable_errors():
        for model in models:
            require_salmonn(model)
        yield


def _say(text: str) -> None:
    from modeling_salmonn.commands.app import console

    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _show(table: Any) -> None:
    from modeling_salmonn.commands.app import console

    console.print(table)


__all__ = ["app"]
