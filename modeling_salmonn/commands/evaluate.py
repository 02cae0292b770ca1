"""`salmonn evaluate MODEL ...`; several processes: accelerate launch -m modeling_salmonn evaluate MODEL ..."""

from pathlib import Path
from typing import Annotated

import typer

from modeling_salmonn.commands.options import (
    BatchSize,
    Data,
    Device,
    Dtype,
    IncludePath,
    Judge,
    Limit,
    LoraScale,
    NumWorkers,
    Output,
    Seed,
    Tasks,
    check_model,
)
from modeling_salmonn.data.tasks import ALL, choose_tasks, load_tasks
from modeling_salmonn.evaluation import run
from modeling_salmonn.evaluation.harness import BAD_CLIPS_FILE
from modeling_salmonn.evaluation.judges import parse_judge
from modeling_salmonn.evaluation.run import EvaluationSettings
from modeling_salmonn.evaluation.summary import comparison, write_model_index
from modeling_salmonn.hub.devices import AUTO, process_state
from modeling_salmonn.hub.model_card import load_card


app = typer.Typer(add_completion=False)


@app.command()
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="Folder or Hub id of a SALMONN; or of a Whisper or a language model, its peers.", callback=check_model
        ),
    ],
    data: Data,
    output: Output,
    tasks: Tasks = None,
    include_path: IncludePath = None,
    limit: Limit = None,
    batch_size: BatchSize = EvaluationSettings.batch_size,
    lora_scale: LoraScale = EvaluationSettings.lora_scale,
    num_beams: Annotated[
        int, typer.Option(min=1, help="Beams; 1 is greedy, the research code used 4.")
    ] = EvaluationSettings.num_beams,
    judge: Judge = "rules",
    by: Annotated[
        list[str] | None,
        typer.Option(help="Column, such as speaker or seconds: scores for each of its values too; repeatable."),
    ] = None,
    card: Annotated[Path | None, typer.Option(help="Model card to put the scores into, as model-index.")] = None,
    seed: Seed = EvaluationSettings.seed,
    device: Device = AUTO,
    dtype: Dtype = EvaluationSettings.dtype,
    num_workers: NumWorkers = EvaluationSettings.num_workers,
) -> None:
    """Evaluate a model on the paper's tasks, or on your own: scores with 95 % intervals.

    On several devices: accelerate launch -m modeling_salmonn evaluate MODEL ...
    """
    if card is not None:
        load_card(card)  # what is wrong with it is told before hours of work
    chosen = choose_tasks(load_tasks(include_path), tasks or [ALL])
    settings = EvaluationSettings(limit, batch_size, lora_scale, num_beams, seed, dtype, device, num_workers)
    summary = run.evaluate(model, chosen, run.read_data(data), output, parse_judge(judge), settings, by=by or ())
    if not process_state().is_main_process:
        return
    typer.echo(comparison({Path(model).name: summary}), nl=False)
    # told last: the table shows which tasks there were, but an evaluation of nothing is a failure
    if not any(entry["rows"] for entry in summary.values()):
        raise ValueError(f"No clip could be read; see {output / BAD_CLIPS_FILE}.")
    if card is not None:
        name, hub_id = run.name_data(data)
        write_model_index(card, Path(model).name, name, summary, hub_id)
