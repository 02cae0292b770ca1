"""A server under 1, 4 and 16 clients, beside batches of the same size in transformers.

    vllm serve OUT --trust-remote-code --served-model-name salmonn ...     # or salmonn serve
    python benchmarks/serving.py http://127.0.0.1:8000 salmonn .venv/salmonn-smol --output rows.json

- a row of the table is printed, and all of them written, as soon as it is measured: server first, transformers next
- each client sends its next request when it has the answer to the last; no clip is sent twice, so no cache helps
- answers are greedy on both sides, from the same clips and question; equal ones are counted
- `openai` is the client; an error is counted and not tried again, and the exit status is 1 if there was any
"""

import argparse
import base64
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import openai
from batches import make_clips

from modeling_salmonn.hub.loading import load_pipeline


QUESTION = "What do you hear?"
COLUMNS = ("clients", "server: requests/s", "tokens/s", "errors", "transformers: requests/s", "tokens/s", "equal")


def ask(client: openai.OpenAI, model: str, new_tokens: int, clip: str) -> str | None:
    """The answer of the server; `None` for an error."""
    data = base64.b64encode(Path(clip).read_bytes()).decode()
    content: Any = [
        {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
        {"type": "text", "text": QUESTION},
    ]
    messages: Any = [{"role": "user", "content": content}]
    try:
        answer = client.chat.completions.create(model=model, messages=messages, max_tokens=new_tokens, temperature=0)
    except openai.OpenAIError as error:
        print(f"{clip}: {error}", file=sys.stderr)
        return None
    return answer.choices[0].message.content or ""


def ask_at_once(question: Callable[[str], str | None], clips: Sequence[str], clients: int) -> list[str | None]:
    """The server's answers to so many clients."""
    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(question, clips))


def answer_in_batches(pipe: Any, clips: Sequence[str], size: int, options: dict[str, Any]) -> list[str | None]:
    """The answers of transformers."""
    return [answer[0]["generated_text"] for answer in pipe(list(clips), batch_size=size, **options)]


def measure(run: Callable[[], list[str | None]], tokenizer: Any) -> tuple[list[str | None], dict[str, Any]]:
    """Answers, and what they took; tokens are those of the texts."""
    start = time.perf_counter()
    answers = run()
    seconds = time.perf_counter() - start
    texts = [answer for answer in answers if answer is not None]
    tokens = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    figures = {
        "requests_per_second": round(len(texts) / seconds, 2),
        "tokens_per_second": round(tokens / seconds, 1),
        "errors": len(answers) - len(texts),
    }
    return [None if answer is None else answer.strip() for answer in answers], figures


def compare(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Figures of both, for one number of clients after the other."""
    client = openai.OpenAI(base_url=f"{args.address}/v1", api_key="none", max_retries=0, timeout=600)
    question = partial(ask, client, args.served, args.new_tokens)
    pipe = load_pipeline(args.model, "cpu", "float32")
    # vLLM has no `no_repeat_ngram_size`
    options = {"text": QUESTION, "num_beams": 1, "no_repeat_ngram_size": 0, "max_new_tokens": args.new_tokens}
    clips = make_clips(folder, args.requests * len(args.clients) + 1, args.sources)
    warm = clips.pop()
    question(warm)
    pipe(warm, **options)
    for index, clients in enumerate(args.clients):
        sent = clips[index * args.requests : (index + 1) * args.requests]
        served, server = measure(partial(ask_at_once, question, sent, clients), pipe.tokenizer)
        own, transformers = measure(partial(answer_in_batches, pipe, sent, clients, options), pipe.tokenizer)
        equal = sum(one == other for one, other in zip(served, own, strict=True))
        yield {"clients": clients, "server": server, "transformers": transformers, "equal_answers": equal}


def table_row(row: dict[str, Any]) -> str:
    """A row of `COLUMNS`."""
    server, transformers = list(row["server"].values()), list(row["transformers"].values())
    cells = [row["clients"], *server, *transformers[:2], row["equal_answers"]]  # transformers' errors end the program
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Print a table, and write its rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="of the server, such as http://127.0.0.1:8000")
    parser.add_argument("served", help="name of the model there")
    parser.add_argument("model", help="folder of the same model, for transformers")
    parser.add_argument("--output", type=Path, help="JSON file for the rows")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=32, help="for each number of clients")
    parser.add_argument("--new-tokens", type=int, default=40)
    parser.add_argument("--sources", type=Path, default=Path("hub/salmonn-smol/clips"), help="folder of *.opus")
    args = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in compare(args, Path(folder)):
            print(table_row(row), flush=True)
            rows.append(row)
            if args.output:
                args.output.write_text(json.dumps(rows, indent=2) + "\n")
    sys.exit(any(row["server"]["errors"] for row in rows))


if __name__ == "__main__":
    main()
