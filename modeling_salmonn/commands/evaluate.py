"""`salmonn evaluate`; with several processes: accelerate launch -m modeling_salmonn evaluate MODEL ..."""

from pathlib import Path
from typing import Annotated

import typer

from modeling_salmonn.commands import activate


Model = Annotated[str, typer.Argument(help="Folder or Hub id of a SALMONN, or of a Whisper or a language model.")]
Suites = Annotated[list[str], typer.Option("--suite", help="level1, level2, level3, all, or a task; repeatable.")]
Data = Annotated[list[str], typer.Option(help="Manifest, audio folder, or NAME[=FOLDER] of a public data set.")]
Output = Annotated[Path, typer.Option(help="Folder for answers and figures; a stopped command goes on there.")]
Most = Annotated[int | None, typer.Option(min=1, help="Rows of each task, drawn at random.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Clips answered at once.")]
Tasks = Annotated[Path | None, typer.Option("--tasks", help="YAML file with tasks of your own.")]
Judged = Annotated[str, typer.Option(help="rules, URL#MODEL of a chat endpoint, or a local language model.")]


def evaluate(
    model: Model,
    data: Data,
    output: Output,
    suite: Suites = ["all"],  # noqa: B006  typer copies it
    batch_size: BatchSize = 8,
    lora_scale: Annotated[float | None, typer.Option(min=0.0, help="LoRA scaling instead of the trained one.")] = None,
    num_beams: Annotated[int, typer.Option(min=1, help="Beams; 1 is greedy, the research code used 4.")] = 1,
    most: Most = None,
    tasks: Tasks = None,
    judge: Judged = "rules",
    card: Annotated[Path | None, typer.Option(help="Model card to put the figures into, as model-index.")] = None,
    seed: Annotated[int, typer.Option(help="Of the choice of rows and of the intervals.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Evaluate a model on the paper's tasks, or on your own: figures with 95 % intervals."""
    from modeling_salmonn.commands.app import readable_errors, require_model  # it imports this file

    with readable_errors():
        from modeling_salmonn.data.tasks import choose_tasks, load_tasks
        from modeling_salmonn.evaluation import run
        from modeling_salmonn.evaluation.judges import parse_judge
        from modeling_salmonn.evaluation.summary import load_card, missing_lines, table, write_model_index

        require_model(model)
        if card is not None:
            load_card(card)
        chosen = choose_tasks(load_tasks(tasks), suite)
        settings = run.EvaluationSettings(most, batch_size, lora_scale, num_beams, seed, dtype)
        summary = run.evaluate(model, chosen, run.read_data(data), output, parse_judge(judge), settings)
        if not run.process_state().is_main_process:
            return
        typer.echo(table({Path(model).name: summary}))
        for line in missing_lines(summary):
            typer.echo(line, err=True)
        if not any(entry["rows"] for entry in summary.values()):
            raise ValueError(f"No clip could be read; see {output / run.BAD_CLIPS_FILE}.")
        if card is not None:
            write_model_index(card, Path(model).name, ", ".join(Path(source).name for source in data), summary)


def sweep(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a SALMONN with an adapter.")],
    data: Data,
    output: Output,
    suite: Suites = ["all"],  # noqa: B006
    scale: Annotated[
        list[float] | None, typer.Option(min=0.0, help="LoRA scaling; repeatable; 0, 0.5 and so on to 4 if not given.")
    ] = None,
    batch_size: BatchSize = 8,
    most: Most = None,
    tasks: Tasks = None,
    judge: Judged = "rules",
    seed: Annotated[int, typer.Option(help="Of the choice of rows and of the intervals.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Draw the figures of tasks against the LoRA scale at which a model answers."""
    from modeling_salmonn.commands.app import readable_errors, require_model

    with readable_errors():
        from modeling_salmonn.data.tasks import choose_tasks, load_tasks
        from modeling_salmonn.evaluation import run
        from modeling_salmonn.evaluation.judges import parse_judge
        from modeling_salmonn.studies.sweep import SCALES, sweep_scales

        require_model(model)
        chosen = choose_tasks(load_tasks(tasks), suite)
        settings = run.EvaluationSettings(most, batch_size, seed=seed, dtype=dtype)
        sweep_scales(model, chosen, run.read_data(data), output, parse_judge(judge), scale or SCALES, settings)
        if run.process_state().is_main_process:
            typer.echo(f"Wrote sweep.json, sweep.png and sweep.md to {output}.")


def perplexity(
    before: Annotated[str, typer.Argument(help="Folder or Hub id of a SALMONN.")],
    probes: Annotated[str, typer.Option(help="JSON lines: path, story, and transcript, caption, or qa and question.")],
    output: Annotated[Path, typer.Option(help="Folder for losses and figures; a stopped command goes on there.")],
    after: Annotated[str | None, typer.Argument(help="The model after activation tuning.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Measure how likely answers of each kind are under each instruction, before and after activation tuning."""
    from modeling_salmonn.commands.app import readable_errors, require_model

    with readable_errors():
        from modeling_salmonn.studies.perplexity import measure_perplexities, read_probes_of_kinds

        models = {"before": before} | ({"after": after} if after is not None else {})
        for model in models.values():
            require_model(model)
        measure_perplexities(models, read_probes_of_kinds(probes), output, dtype)
        typer.echo(f"Wrote perplexity.json, perplexity.png and perplexity.md to {output}.")


def activation_data(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a SALMONN with an adapter.")],
    clips: Annotated[str, typer.Option(help="Manifest or audio folder; its asr rows also give the transcripts.")],
    data: Data,
    output: Annotated[Path, typer.Option(help="Folder for models and figures; a stopped command goes on there.")],
    answers: activate.Answers = 12,
    lora_scale: activate.Discount = None,
    tries: activate.Tries = 4,
    min_words: activate.MinWords = 40,
    max_new_tokens: activate.WrittenTokens = 300,
    temperature: activate.Temperature = 1.0,
    steps: activate.Steps = 12,
    learning_rate: activate.LearningRate = 3e-5,
    limit: activate.Limit = 100,
    compared_tokens: activate.ComparedTokens = 200,
    batch_size: activate.BatchSize = 4,
    prompts: activate.Prompts = None,
    dtype: activate.Dtype = "float32",
    seed: activate.Seed = 0,
) -> None:
    """Tune a model on stories, on long answers, on long transcripts and on stories without audio, and compare."""
    from modeling_salmonn.commands.app import readable_errors, require_model

    with readable_errors():
        from modeling_salmonn.activation import tuning
        from modeling_salmonn.data.rows import load_rows
        from modeling_salmonn.evaluation.run import read_data
        from modeling_salmonn.studies.activation_data import compare_activation_data

        require_model(model)
        writing = tuning.WritingSettings(
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
            tuning.load_prompts(prompts),
            writing,
            tuning.TuningSettings(steps, learning_rate, seed, dtype),
            tuning.ComparisonSettings(limit, seed, compared_tokens, batch_size),
        )
        for line in found.left_out_lines():
            typer.echo(line, err=True)
        typer.echo(f"Wrote activation_data.json, activation_data.png and activation_data.md to {output}.")


def windows(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a SALMONN: configuration, bases, tokenizer.")],
    data: Annotated[list[str], typer.Option(help="Rows with alignment_text or alignment_words; can be repeated.")],
    eval_data: Annotated[list[str], typer.Option(help="Rows with alignment_text to measure on; can be repeated.")],
    feature_cache: Annotated[Path, typer.Option(help="Folder for the outputs of the encoders.")],
    output: Annotated[Path, typer.Option(help="Folder for figures; lengths that are finished there are kept.")],
    window: Annotated[list[float], typer.Option(min=0.02, max=30, help="A window length in seconds; repeatable.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps for each length.")] = 1000,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips in each step.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate; cosine after a short warm-up.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Of the first weights and of the batches.")] = 0,
) -> None:
    """Train the connector alone with windows of several lengths, and measure what it reads."""
    from modeling_salmonn.commands.app import readable_errors, require_model

    with readable_errors():
        from modeling_salmonn.data.rows import load_rows
        from modeling_salmonn.studies.windows import WindowSettings, compare_windows

        require_model(model)
        settings = WindowSettings(steps, batch_size, learning_rate, seed)
        compare_windows(model, window, load_rows(data), load_rows(eval_data), feature_cache, output, settings)
        typer.echo(f"Wrote windows.json, windows.png and windows.md to {output}.")


if __name__ == "__main__":
    typer.run(evaluate)


__all__ = ["activation_data", "evaluate", "perplexity", "sweep", "windows"]
