"""`salmonn study sweep|perplexity|activation-data|windows`."""

from pathlib import Path
from typing import Annotated

import typer

from modeling_salmonn.activation.tuning import EVALUATED_ROWS, TuningSettings
from modeling_salmonn.activation.writing import WritingSettings
from modeling_salmonn.commands.options import (
    Answers,
    BatchSize,
    Clips,
    Data,
    Device,
    Dtype,
    IncludePath,
    Judge,
    LearningRate,
    Limit,
    MaxNewTokens,
    MinWords,
    Model,
    Output,
    Prompts,
    Seed,
    Steps,
    Tasks,
    Temperature,
    Tries,
    WritingScale,
    check_salmonn,
)
from modeling_salmonn.data.prompts import load_all_prompts
from modeling_salmonn.data.rows import load_rows
from modeling_salmonn.data.tasks import ALL, choose_tasks, load_tasks
from modeling_salmonn.evaluation.judges import parse_judge
from modeling_salmonn.evaluation.run import EvaluationSettings, read_data
from modeling_salmonn.hub.devices import AUTO, process_state
from modeling_salmonn.studies.activation_data import compare_activation_data
from modeling_salmonn.studies.perplexity import measure_perplexities, read_probes_of_kinds
from modeling_salmonn.studies.sweep import SCALES, sweep_scales
from modeling_salmonn.studies.windows import WindowSettings, compare_windows


app = typer.Typer(
    help="Studies of a model, as in the paper: a folder of numbers, a picture and how to read it.",
    add_completion=False,
    no_args_is_help=True,
)


@app.command()
def sweep(
    model: Model,
    data: Data,
    output: Output,
    tasks: Tasks = None,
    include_path: IncludePath = None,
    lora_scale: Annotated[
        list[float] | None, typer.Option(min=0.0, help="LoRA scaling; repeatable; 0, 0.5 and so on to 4 if not given.")
    ] = None,
    limit: Limit = None,
    batch_size: BatchSize = EvaluationSettings.batch_size,
    judge: Judge = "rules",
    seed: Seed = EvaluationSettings.seed,
    device: Device = AUTO,
    dtype: Dtype = EvaluationSettings.dtype,
) -> None:
    """Draw the scores of tasks against the LoRA scale at which a model answers (paper, Fig. 3)."""
    chosen = choose_tasks(load_tasks(include_path), tasks or [ALL])
    settings = EvaluationSettings(limit, batch_size, seed=seed, dtype=dtype, device=device)
    sweep_scales(model, chosen, read_data(data), output, parse_judge(judge), lora_scale or SCALES, settings)
    if process_state().is_main_process:
        tell_written("sweep", output)


@app.command()
def perplexity(
    before: Annotated[str, typer.Argument(help="Folder or Hub id of a SALMONN.", callback=check_salmonn)],
    probes: Annotated[str, typer.Option(help="JSON lines: path, story, and transcript, caption, or qa and question.")],
    output: Output,
    after: Annotated[
        str | None, typer.Argument(help="The model after activation tuning.", callback=check_salmonn)
    ] = None,
    device: Device = AUTO,
    dtype: Dtype = EvaluationSettings.dtype,
) -> None:
    """Measure how likely answers of each kind are under each instruction, before and after tuning (Fig. 4)."""
    models = {"before": before}
    if after is not None:
        models["after"] = after
    measure_perplexities(models, read_probes_of_kinds(probes), output, dtype, device)
    tell_written("perplexity", output)


@app.command()
def activation_data(
    model: Model,
    clips: Clips,
    data: Data,
    output: Output,
    answers: Answers = WritingSettings.answers,
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
    """Tune a model on stories, long answers, long transcripts and stories without audio, and compare (Table 4)."""
    writing = WritingSettings(
        answers=answers,
        lora_scale=lora_scale,
        seed=seed,
        tries=tries,
        min_words=min_words,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        batch_size=batch_size,
    )
    found = compare_activation_data(
        model,
        load_rows(clips, needs=("path",)),
        read_data(data),
        output,
        load_all_prompts(prompts),
        writing,
        TuningSettings(steps, learning_rate, seed, dtype, device),
        EvaluationSettings(limit, batch_size, seed=seed),
    )
    for line in found.left_out_lines():
        typer.echo(line, err=True)
    tell_written("activation_data", output)


@app.command()
def windows(
    model: Model,
    data: Annotated[list[str], typer.Option(help="Rows with alignment_text or alignment_words; repeatable.")],
    eval_data: Annotated[list[str], typer.Option(help="Rows with alignment_text to measure on; repeatable.")],
    feature_cache: Annotated[Path, typer.Option(help="Folder for the outputs of the encoders.")],
    output: Output,
    window: Annotated[list[float], typer.Option(min=0.02, max=30, help="A window length in seconds; repeatable.")],
    steps: Steps = WindowSettings.steps,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips in each step.")] = WindowSettings.batch_size,
    learning_rate: LearningRate = WindowSettings.learning_rate,
    seed: Seed = WindowSettings.seed,
    device: Device = AUTO,
) -> None:
    """Train the connector alone with windows of several lengths, and measure what it reads."""
    settings = WindowSettings(steps, batch_size, learning_rate, seed)
    compare_windows(model, window, load_rows(data), load_rows(eval_data), feature_cache, output, settings, device)
    tell_written("windows", output)


def tell_written(name: str, output: Path) -> None:
    """Name the files of a study."""
    typer.echo(f"Wrote {name}.json, {name}.png and {name}.md to {output}.")
