"""`salmonn activate MODEL ...`: activation tuning, all of it at once; or step by step, by a command for each."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from modeling_salmonn.activation.tuning import (
    EVALUATED_ROWS,
    TuningSettings,
    loss_summary,
    run_activation,
    tune_on_answers,
)
from modeling_salmonn.activation.writing import WritingSettings, write_answers
from modeling_salmonn.commands.options import (
    Answers,
    BatchSize,
    Clips,
    Device,
    Dtype,
    LearningRate,
    Limit,
    MaxNewTokens,
    MinWords,
    Model,
    Output,
    Prompts,
    Seed,
    Steps,
    Temperature,
    Tries,
    WritingScale,
)
from modeling_salmonn.data.prompts import load_all_prompts
from modeling_salmonn.data.rows import load_rows
from modeling_salmonn.evaluation.answering import Answerer
from modeling_salmonn.evaluation.run import EvaluationSettings
from modeling_salmonn.hub.devices import AUTO


RUN = "run"


class RunByDefault(TyperGroup):
    """Commands of which `run` need not be named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take what begins with no command, and does not ask for help, as the arguments of `run`."""
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = [RUN, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    help="Activation tuning: let a model write long answers, and tune it on them.\n\n"
    "salmonn activate MODEL --clips CLIPS --output DIR does all of it, with the options of `run`.",
    cls=RunByDefault,
    add_completion=False,
    no_args_is_help=True,
    subcommand_metavar="MODEL | COMMAND [ARGS]...",
)
ComparedData = Annotated[
    list[str] | None, typer.Option(help="Rows of untrained tasks and of asr to compare on; repeatable.")
]
QuestionShare = Annotated[float, typer.Option(min=0, max=1, help="Share of clips with a question, not a story.")]


@app.command(RUN)
def run_command(
    model: Model,
    clips: Clips,
    output: Output,
    data: ComparedData = None,
    answers: Answers = WritingSettings.answers,
    question_share: QuestionShare = WritingSettings.question_share,
    lora_scale: WritingScale = WritingSettings.lora_scale,
    tries: Tries = WritingSettings.tries,
    min_words: MinWords = WritingSettings.min_words,
    max_new_tokens: MaxNewTokens = WritingSettings.max_new_tokens,
    temperature: Temperature = WritingSettings.temperature,
    steps: Steps = TuningSettings.steps,
    learning_rate: LearningRate = TuningSettings.learning_rate,
    limit: Limit = EVALUATED_ROWS,
    batch_size: BatchSize = WritingSettings.batch_size,
    prompts: Prompts = None,
    seed: Seed = WritingSettings.seed,
    device: Device = AUTO,
    dtype: Dtype = TuningSettings.dtype,
) -> None:
    """Write, tune and evaluate before and after, as without a command's name; what was stopped resumes."""
    report = run_activation(
        model,
        load_rows(clips, needs=("path",)),
        output,
        load_all_prompts(prompts),
        WritingSettings(
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
        TuningSettings(steps, learning_rate, seed, dtype, device),
        EvaluationSettings(limit, batch_size, seed=seed),
        load_rows(data) if data else None,
    )
    typer.echo(report.summary(), nl=False)


@app.command("write")
def write_command(
    model: Model,
    clips: Clips,
    output: Output,
    answers: Answers = WritingSettings.answers,
    question_share: QuestionShare = WritingSettings.question_share,
    lora_scale: WritingScale = WritingSettings.lora_scale,
    tries: Tries = WritingSettings.tries,
    min_words: MinWords = WritingSettings.min_words,
    max_new_tokens: MaxNewTokens = WritingSettings.max_new_tokens,
    temperature: Temperature = WritingSettings.temperature,
    batch_size: BatchSize = WritingSettings.batch_size,
    prompts: Prompts = None,
    seed: Seed = WritingSettings.seed,
    device: Device = AUTO,
    dtype: Dtype = TuningSettings.dtype,
) -> None:
    """Let a model write long answers at a discounted LoRA scale: answers.jsonl, to be read and changed."""
    settings = WritingSettings(
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
    rows, instructions = load_rows(clips, needs=("path",)), load_all_prompts(prompts)
    answerer = Answerer.from_pretrained(model, dtype, device)
    typer.echo(write_answers(answerer, rows, output, instructions, settings).summary())


@app.command("tune")
def tune_command(
    model: Model,
    answers: Annotated[Path, typer.Argument(help="Manifest of answers.")],
    output: Output,
    steps: Steps = TuningSettings.steps,
    learning_rate: LearningRate = TuningSettings.learning_rate,
    seed: Seed = TuningSettings.seed,
    device: Device = AUTO,
    dtype: Dtype = TuningSettings.dtype,
) -> None:
    """Tune a model on answers at its full LoRA scale, one answer a step."""
    settings = TuningSettings(steps, learning_rate, seed, dtype, device)
    typer.echo(loss_summary(tune_on_answers(model, answers, output, settings)))
    typer.echo(f"Wrote {output}.")
