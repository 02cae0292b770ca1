"""A server under 1, 4 and 16 clients, beside batches of the same size in transformers.

    vllm serve OUT --trust-remote-code --served-model-name salmonn ...     # or salmonn serve
    python benchmarks/serving.py http://127.0.0.1:8000 salmonn .venv/salmonn-smol

- each client sends its next request when it has the answer to the last; no clip is sent twice, so no cache helps
- answers are greedy on both sides, from the same clips and question; equal ones are counted
- `openai` is the client; an error is counted and not tried again
"""

import argparse
import base64
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
from batches import make_clips

from modeling_salmonn.commands.ask import load_pipeline


QUESTION = "What do you hear?"


def ask(client: openai.OpenAI, model: str, clip: str, new_tokens: int) -> str | None:
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
        print(f"{clip}: {error}")
        return None
    return answer.choices[0].message.content or ""


def measure(run: Callable[[], Sequence[str | None]], tokenizer: Any) -> tuple[list[str | None], dict[str, Any]]:
    """Answers, and what they took; tokens are those of the texts."""
    start = time.perf_counter()
    answers = list(run())
    seconds = time.perf_counter() - start
    texts = [answer for answer in answers if answer is not None]
    tokens = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    figures = {
        "requests_per_second": round(len(texts) / seconds, 2),
        "tokens_per_second": round(tokens / seconds, 1),
        "errors": len(answers) - len(texts),
    }
    return [None if answer is None else answer.strip() for answer in answers], figures


def compare(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Figures of both for each number of clients."""
    client = openai.OpenAI(base_url=f"{args.address}/v1", api_key="none", max_retries=0, timeout=600)
    pipe = load_pipeline(args.model, "cpu", "float32")
    # vLLM has no `no_repeat_ngram_size`
    options = {"text": QUESTION, "num_beams": 1, "no_repeat_ngram_size": 0, "max_new_tokens": args.new_tokens}
    clips = make_clips(folder, args.requests * len(args.clients) + 1, args.sources)
    warm = clips.pop()
    ask(client, args.served, warm, args.new_tokens)
    pipe(warm, **options)
    rows = []
    for index, clients in enumerate(args.clients):
        sent = clips[index * args.requests : (index + 1) * args.requests]

        def serve(sent: list[str] = sent, clients: int = clients) -> list[str | None]:
            with ThreadPoolExecutor(clients) as pool:
                return list(pool.map(lambda clip: ask(client, args.served, clip, args.new_tokens), sent))

        def batch(sent: list[str] = sent, clients: int = clients) -> list[str | None]:
            return [answer[0]["generated_text"] for answer in pipe(sent, batch_size=clients, **options)]

        served, server = measure(serve, pipe.tokenizer)
        own, transformers = measure(batch, pipe.tokenizer)
        equal = sum(one == other for one, other in zip(served, own, strict=True))
        rows.append({"clients": clients, "server": server, "transformers": transformers, "equal_answers": equal})
    return rows


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="of the server, such as http://127.0.0.1:8000")
    parser.add_argument("served", help="name of the model there")
    parser.add_argument("model", help="folder of the same model, for transformers")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=32, help="for each number of clients")
    parser.add_argument("--new-tokens", type=int, default=40)
    parser.add_argument("--sources", type=Path, default=Path("hub/salmonn-smol/clips"), help="folder of *.opus")
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(parser.parse_args(), Path(folder))
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
