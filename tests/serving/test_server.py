"""`salmonn serve`: OpenAI's client against a server process."""

import base64
import http.client
import io
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import soundfile
from audio_server import audio_server
from conftest import ROOT, SAMPLING_RATE, make_clip
from salmonn_server import running_server, serve_command

from modeling_salmonn import AudioTextPipeline, SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.hub.loading import load_pipeline


openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")

QUESTION = "What do you hear?"
NEW_TOKENS = 6
CLIENTS = 16


def encoded_clip(seed: int, seconds: float = 1.5) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, make_clip(seconds, seed=seed), SAMPLING_RATE, format="WAV")
    return file.getvalue()


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


def input_audio(content: bytes) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64_of(content), "format": "wav"}}


def audio_url(url: str) -> dict[str, Any]:
    return {"type": "audio_url", "audio_url": {"url": url}}


def question_about(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}]


@pytest.fixture(scope="module")
def address(saved_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("server") / "log.txt"
    options = ("--max-audio-seconds", 20, "--max-body-mib", 1, "--max-requests", 2 * CLIENTS)
    with running_server(serve_command(saved_folder, *options), log) as found:
        yield found


@pytest.fixture(scope="module")
def client(address: str) -> Any:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def pipe(saved_folder: Path) -> AudioTextPipeline:
    model = SalmonnForConditionalGeneration.from_pretrained(saved_folder)
    return AudioTextPipeline(model=model, processor=SalmonnProcessor.from_pretrained(saved_folder))


def ask(client: Any, *parts: dict[str, Any], model: str = "salmonn-tiny", **options: Any) -> Any:
    return client.chat.completions.create(
        model=model, messages=question_about(*parts), **({"max_tokens": NEW_TOKENS} | options)
    )


def without_broken_end(text: str) -> str:
    """Random weights end within a character, whose bytes a stream holds back."""
    return text.rstrip("\ufffd").strip()


def answer_of(completion: Any) -> str:
    return completion.choices[0].message.content.strip()


def expected(pipe: AudioTextPipeline, clip: bytes | None, **options: Any) -> str:
    return pipe({"audio": clip, "text": QUESTION}, max_new_tokens=NEW_TOKENS, **options)[0]["generated_text"]


@pytest.mark.parametrize("kind", ["input_audio", "data_uri", "raw_data_uri"])
def test_chat_answers_as_the_pipeline(kind: str, client: Any, pipe: AudioTextPipeline) -> None:
    clip = encoded_clip(1)
    uri = f"data:audio/wav;base64,{base64_of(clip)}"
    parts = {
        "input_audio": input_audio(clip),
        "data_uri": audio_url(uri),
        "raw_data_uri": {"type": "input_audio", "input_audio": {"data": uri, "format": "wav"}},
    }
    completion = ask(client, parts[kind])
    assert answer_of(completion) == expected(pipe, clip)
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage.completion_tokens == NEW_TOKENS


def test_chat_answers_about_two_clips_and_without_any(client: Any, pipe: AudioTextPipeline) -> None:
    clips = [encoded_clip(1), encoded_clip(2)]
    both = pipe({"audio": clips, "text": QUESTION}, max_new_tokens=NEW_TOKENS)[0]["generated_text"]
    assert answer_of(ask(client, *map(input_audio, clips))) == both
    assert answer_of(ask(client)) == expected(pipe, None)


def test_stream_has_the_same_answer_in_pieces(client: Any, pipe: AudioTextPipeline) -> None:
    clip = encoded_clip(1)
    chunks = list(ask(client, input_audio(clip), stream=True))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert len(pieces) > 1
    assert without_broken_end("".join(pieces)) == without_broken_end(expected(pipe, clip))
    assert chunks[-1].choices[0].finish_reason == "length"


@pytest.fixture(scope="module")
def long_answer(pipe: AudioTextPipeline) -> str:
    return pipe({"audio": encoded_clip(1), "text": QUESTION}, max_new_tokens=40)[0]["generated_text"]


def last_pair(text: str) -> str:
    """The last two characters beside each other that are whole, of which one has several tokens."""
    pairs = re.findall(r"[^\ufffd\s]{2}", text)
    return next(pair for pair in reversed(pairs) if not pair.isascii())


def test_stop_ends_the_answer_and_is_no_part_of_it(client: Any, long_answer: str) -> None:
    letter = next(character for character in long_answer[1:-10] if character.isascii())
    for stop in ([letter], letter, ["never said", letter], [last_pair(long_answer)]):
        completion = ask(client, input_audio(encoded_clip(1)), stop=stop, max_tokens=40)
        end = long_answer.index(stop if isinstance(stop, str) else stop[-1])
        assert answer_of(completion) == long_answer[:end].strip()
        assert completion.choices[0].finish_reason == "stop"
        assert completion.usage.completion_tokens < 40


def test_stop_is_no_part_of_a_stream(client: Any, long_answer: str) -> None:
    stop = last_pair(long_answer)
    *pieces, last = ask(client, input_audio(encoded_clip(1)), stop=[stop], max_tokens=40, stream=True)
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text.strip() == long_answer[: long_answer.index(stop)].strip()
    assert last.choices[0].finish_reason == "stop"


def test_stop_that_only_begins_changes_no_stream(client: Any, long_answer: str) -> None:
    stops = [f"{character}never said" for character in last_pair(long_answer)]
    chunks = ask(client, input_audio(encoded_clip(1)), stop=stops, max_tokens=40, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert without_broken_end(text) == without_broken_end(long_answer)


NEUTRAL_FIELDS: dict[str, Any] = {
    "stop": [],
    "frequency_penalty": 0,
    "presence_penalty": 0.0,
    "logit_bias": {},
    "top_p": 1,
    "n": 1,
}


def test_neutral_fields_change_nothing(client: Any, pipe: AudioTextPipeline) -> None:
    clip = encoded_clip(1)
    answer = answer_of(ask(client, input_audio(clip), **NEUTRAL_FIELDS))
    assert answer == expected(pipe, clip)
    assert answer_of(ask(client, input_audio(clip), extra_body={"stop": None}, temperature=0, top_p=0.5)) == answer


def test_chat_stream_ends_as_openai_ends_it(address: str) -> None:
    request = {"model": "salmonn-tiny", "messages": question_about(), "max_tokens": NEW_TOKENS, "stream": True}
    status, text = fetch_text(address, "POST", "/v1/chat/completions", request)
    *events, last, nothing = text.split("\n\n")
    assert (status, last, nothing) == (200, "data: [DONE]", "")
    assert json.loads(events[-1].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"


def test_failure_of_the_model_is_told_as_an_error(client: Any, address: str) -> None:
    failing = {"temperature": 1e-300}  # which makes the probabilities overflow
    with pytest.raises(openai.APIError, match="probability tensor"):
        list(ask(client, stream=True, **failing))
    with pytest.raises(openai.InternalServerError, match="The server could not answer; its log tells why"):
        ask(client, **failing)
    request = {"model": "salmonn-tiny", "messages": question_about(), "stream": True} | failing
    _, text = fetch_text(address, "POST", "/v1/chat/completions", request)
    error, last, _ = text.split("\n\n")[-3:]
    assert json.loads(error.removeprefix("data: "))["error"]["type"] == "server_error"
    assert last == "data: [DONE]"


def test_transcription_is_that_of_the_processor(client: Any, pipe: AudioTextPipeline) -> None:
    clip = encoded_clip(3)
    instruction = pipe.processor.default_transcription_prompt
    words = pipe(clip, text=instruction)[0]["generated_text"]
    upload = {"model": "salmonn-tiny", "file": ("clip.wav", clip)}
    assert client.audio.transcriptions.create(**upload).text == words
    assert client.audio.transcriptions.create(**upload, response_format="text").strip() == words
    asked = pipe(clip, text=QUESTION)[0]["generated_text"]
    assert client.audio.transcriptions.create(**upload, prompt=QUESTION).text == asked
    events = list(client.audio.transcriptions.create(**upload, stream=True))
    assert without_broken_end(events[-1].text) == without_broken_end(words)
    assert "".join(event.delta for event in events[:-1]).strip() == events[-1].text


def test_scales_of_concurrent_requests_stay_their_own(client: Any, pipe: AudioTextPipeline) -> None:
    scales = [None, 0.0, 1.0, 8.0]
    clips = [encoded_clip(seed, 1 + seed / 4) for seed in range(4)]
    jobs = [(clip, scale, stream) for clip in clips for scale in scales for stream in (False, True)]
    wanted = []
    for clip, scale, _ in jobs:
        wanted.append(expected(pipe, clip, **({} if scale is None else {"lora_scale": scale})))
    assert len(set(wanted)) > len(clips)  # the scales make a difference

    def answer(job: tuple[bytes, float | None, bool]) -> str:
        clip, scale, stream = job
        model = "salmonn-tiny" if scale is None else f"salmonn-tiny@{scale}"
        given = ask(client, input_audio(clip), model=model, stream=stream)
        if not stream:
            return answer_of(given)
        return "".join(chunk.choices[0].delta.content or "" for chunk in given).strip()

    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = list(clients.map(answer, jobs))
    assert [without_broken_end(text) for text in answers] == [without_broken_end(text) for text in wanted]


def test_example_of_the_page_runs(address: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (block,) = re.findall(r"```py\n(.*?)```", (ROOT / "docs" / "serve.md").read_text(), re.S)
    monkeypatch.chdir(ROOT)
    exec(block.replace("http://127.0.0.1:8000", address).replace('"salmonn-smol"', '"salmonn-tiny"'), {})
    assert capsys.readouterr().out.strip()


def test_models_and_health_are_told(client: Any, address: str) -> None:
    assert [model.id for model in client.models.list()] == ["salmonn-tiny"]
    assert fetch(address, "GET", "/health") == (200, {"status": "ok"})
    for name in ("salmonn-tiny", "salmonn-tiny@2.0"):
        assert client.models.retrieve(name).id == name
    for name in ("gpt-audio", "lab/salmonn"):
        with pytest.raises(openai.NotFoundError, match="this server has 'salmonn-tiny'"):
            client.models.retrieve(name)


@pytest.mark.parametrize("path", ["/load_model", "/reset", "/v1/completions", "/v1/responses", "/v1/systemone"])
def test_other_routes_of_the_stock_server_are_closed(path: str, address: str) -> None:
    status, answer = fetch(address, "POST", path, {"model": "other/model"})
    assert (status, answer["error"]["type"]) == (404, "invalid_request_error")


@pytest.mark.parametrize("body", [[], "text", None])
def test_body_that_is_no_object_is_told(body: Any, address: str) -> None:
    status, answer = fetch(address, "POST", "/v1/chat/completions", body)
    assert status == 400
    assert "must be a JSON object" in answer["error"]["message"]


def test_local_files_and_private_addresses_are_not_read(client: Any, wav_file: Path) -> None:
    for url in (str(wav_file), f"file://{wav_file}"):
        with pytest.raises(openai.BadRequestError, match="allow_paths is False"):
            ask(client, audio_url(url))
    for field in ({"path": str(wav_file)}, {"audio": str(wav_file)}, {"url": str(wav_file)}):
        with pytest.raises(openai.BadRequestError, match="allow_paths is False"):
            ask(client, {"type": "audio", **field})
    with audio_server(encoded_clip(0)) as inside:
        with pytest.raises(openai.BadRequestError, match="no public address"):
            ask(client, audio_url(f"{inside.url}/clip"))
        assert inside.requested == []
    options = {"chat_template_kwargs": {"allow_paths": True}}
    with pytest.raises(openai.BadRequestError, match="does not take 'chat_template_kwargs'"):
        ask(client, {"type": "audio", "path": str(wav_file)}, extra_body=options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 2}, "does not take 'n'"),
        ({"max_tokens": 5000}, "max_tokens must be 1 to 1024, got 5000"),
        ({"max_tokens": {}}, "max_tokens must be a number"),
        ({"temperature": 9}, "temperature must be 0 to 2, got 9"),
        ({"temperature": 1, "seed": 1}, "does not take 'seed' with a temperature"),
        ({"top_p": []}, "top_p must be a number"),
        ({"temperature": 1, "top_p": 5}, "top_p must be 0 to 1, got 5"),
        ({"top_p": 0.1}, "nothing is drawn without a temperature; send one too"),
        ({"frequency_penalty": 0.5}, "does not take 'frequency_penalty'"),
        ({"logit_bias": {"5": 100}}, "does not take 'logit_bias'"),
        ({"stop": ""}, "stop must be a string, or a list of at most 4, each with 1 to 64 characters; got ''"),
        ({"stop": [""]}, "stop must be"),
        ({"stop": [1]}, r"stop must be .* got \[1\]"),
        ({"stop": {}}, "stop must be"),
        ({"stop": list("abcde")}, "stop must be"),
        ({"stop": "a" * 65}, "stop must be"),
        ({"stop": [1], "stream": True}, "stop must be"),
        ({"extra_body": {"top_k": 5}}, "Unexpected fields in the request: {'top_k'}.* leave them out"),
        ({"messages": []}, "The conversation is empty"),
        ({"messages": "hello"}, "A conversation is a list of messages"),
        ({"model": "salmonn-tiny@loud"}, "names no LoRA scale"),
        ({"model": "salmonn-tiny@-1"}, "names no LoRA scale"),
    ],
)
def test_requests_that_cannot_be_answered_are_told_why(options: dict[str, Any], message: str, client: Any) -> None:
    request = {"model": "salmonn-tiny", "messages": question_about()} | options
    with pytest.raises(openai.BadRequestError, match=message):
        client.chat.completions.create(**request)


def test_unknown_model_is_not_found(client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="this server has 'salmonn-tiny'"):
        ask(client, model="gpt-audio")


def test_too_long_and_too_large_clips_are_refused(client: Any, address: str) -> None:
    with pytest.raises(openai.BadRequestError, match="20"):
        ask(client, input_audio(encoded_clip(0, 21)))
    with pytest.raises(openai.BadRequestError, match="9 clips; send at most 8"):
        ask(client, *[input_audio(encoded_clip(0, 1))] * 9)
    with pytest.raises(openai.APIStatusError, match="more than 1048576 bytes") as caught:
        ask(client, input_audio(bytes(2**20)))
    assert caught.value.status_code == 413
    # without a stated length
    connection = http.client.HTTPConnection(urlsplit(address).netloc)
    pieces = iter([b" " * 2**19] * 3)
    connection.request("POST", "/v1/chat/completions", pieces, encode_chunked=True)
    assert connection.getresponse().status == 413


def test_clips_behind_urls_have_the_limit_of_requests(saved_folder: Path, tmp_path: Path) -> None:
    # the only addresses that a test can use are private
    code = "from modeling_salmonn.processing import audio_download_salmonn as download; download.is_public = bool; "
    code += "import runpy; runpy.run_module('modeling_salmonn', run_name='__main__')"
    python, _, _, *options = serve_command(saved_folder, "--max-body-mib", 1)
    with running_server([python, "-c", code, *options], tmp_path / "log.txt") as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        with audio_server(encoded_clip(1)) as outside:
            answer = answer_of(ask(client, audio_url(f"{outside.url}/clip")))
            assert answer == answer_of(ask(client, input_audio(encoded_clip(1))))
        message = "it has more than 1048576 bytes; cut or compress it"
        with audio_server(encoded_clip(1, 35)) as outside, pytest.raises(openai.BadRequestError, match=message):
            ask(client, audio_url(f"{outside.url}/clip"))


def test_overload_is_refused_and_ends(saved_folder: Path, tmp_path: Path) -> None:
    command = serve_command(saved_folder, "--max-requests", 1)
    with running_server(command, tmp_path / "log.txt") as address:
        waiting = http.client.HTTPConnection(urlsplit(address).netloc)
        waiting.putrequest("POST", "/v1/chat/completions")
        waiting.putheader("Content-Length", "1000")
        waiting.endheaders(b"{")  # the rest is still to come
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        assert fetch(address, "GET", "/health")[0] == 200
        with pytest.raises(openai.InternalServerError, match="try again later") as caught:
            ask(client)
        assert caught.value.status_code == 503
        assert int(caught.value.response.headers["retry-after"]) > 0
        waiting.close()
        patient = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=3)
        assert answer_of(ask(patient))


def test_smaller_weights_are_served(saved_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="make test-quantization installs it")
    clip = encoded_clip(1)
    with running_server(serve_command(saved_folder, "--quantize", "int8"), tmp_path / "log.txt") as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        answer = answer_of(ask(client, input_audio(clip)))
    assert answer == expected(load_pipeline(str(saved_folder), "cpu", "auto", "int8"), clip)


def fetch(address: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    status, text = fetch_text(address, method, path, body)
    return status, json.loads(text)


def fetch_text(address: str, method: str, path: str, body: Any = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection(urlsplit(address).netloc)
    connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, response.read().decode()
