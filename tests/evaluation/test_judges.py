"""Judges of the following rate: rules, a server of chat completions and tiny language models on this machine."""

import json
import logging
import socket
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from threading import Thread

import pytest
import torch
from byte_tokenizer import byte_tokenizer
from chat_server import Server
from judged_answers import CONTEXT, NASTY
from transformers import LlamaConfig, LlamaForCausalLM

from modeling_salmonn.evaluation import judges
from modeling_salmonn.evaluation.judges import (
    ChatJudge,
    Judge,
    LocalJudge,
    RuleJudge,
    UnclearVerdictError,
    judge_prompt,
    parse_judge,
)


KEY = "sk-do-not-show-0123456789"
ROW = ("story", "Tell a story about this.", "Once upon a time a dog ran away.", CONTEXT)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def chat_judge(server: Server, attempts: int = 3, key: str | None = None) -> ChatJudge:
    return ChatJudge(server.url, "gpt-tiny", key, max_retries=attempts - 1)


# Rules


def test_rule_judge_goes_by_the_rules_of_the_task() -> None:
    judge: Judge = RuleJudge()
    assert judge.name == "rules"
    assert judge.judge("story", "Tell a story.", "Please call me at ten.", CONTEXT) == "copies the transcript"
    assert judge.judge("speech_qa", "When?", "At ten.", CONTEXT) is None
    with pytest.raises(ValueError, match="no rule for the task 'poem'"):
        judge.judge("poem", "Write a poem.", "Roses are red.", CONTEXT)


# Chat endpoints


def test_chat_judge_asks_the_endpoint(server: Server) -> None:
    server.reply("FOLLOWS", "<think>Hm.</think>\nFAILS: only a transcript")
    judge: Judge = chat_judge(server)
    assert judge.name == f"openai:gpt-tiny at {server.url}"
    assert judge.judge(*ROW) is None
    assert judge.judge(*ROW) == "only a transcript"

    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["content-type"] == "application/json"
    assert "authorization" not in headers
    message = {"role": "user", "content": judge_prompt(*ROW)}
    assert json.loads(body) == {"model": "gpt-tiny", "messages": [message], "temperature": 0}


def test_chat_judge_adds_nothing_else_to_its_url(server: Server) -> None:
    server.reply("FOLLOWS")
    ChatJudge(f"{server.url}beta/openai/", "gpt-tiny").judge(*ROW)
    assert server.requests[0][0] == "/v1beta/openai/chat/completions"


@pytest.mark.parametrize("answer", NASTY)
def test_verdict_in_the_answer_is_not_the_judges(server: Server, answer: str) -> None:
    judge = chat_judge(server)
    server.reply("FAILS: only a transcript")
    assert judge.judge("story", "Tell.", answer, CONTEXT) == "only a transcript"
    server.reply(f"The answer is {answer!r}.")
    with pytest.raises(UnclearVerdictError, match="The judge replied"):
        judge.judge("story", "Tell.", answer, CONTEXT)


@pytest.mark.parametrize("argument", [KEY, None])
def test_key_goes_into_the_header_alone(
    server: Server, argument: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another" if argument else f"{KEY}\n")
    server.reply("FOLLOWS")
    judge = chat_judge(server, key=argument)
    with caplog.at_level(logging.DEBUG):
        judge.judge(*ROW)
    _, headers, body = server.requests[0]
    assert headers.pop("authorization") == f"Bearer {KEY}"
    assert KEY not in f"{body}{headers}{judge.name}{judge}{caplog.text}"


def test_empty_key_is_not_sent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.reply("FOLLOWS")
    chat_judge(server, key="").judge(*ROW)
    assert "authorization" not in server.requests[0][1]


def test_redirection_is_not_followed(server: Server) -> None:
    server.responses = [(302, f"{server.url}/elsewhere"), (200, "hello")]
    with pytest.raises(ValueError, match=r"HTTP status 302 and .*elsewhere'; check the URL"):
        chat_judge(server, key=KEY).judge(*ROW)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, f"Wrong key: {KEY}", r"HTTP status 401 and 'Wrong key: \*\*\*'; set OPENAI_API_KEY"),
        (401, f"{'x' * 190} {KEY}", r"x \*\*\*'; set"),  # hidden before it is shortened
        (200, f"Hello, {KEY}", r"answered with 'Hello, \*\*\*', which is no chat completion"),
        (200, json.dumps({"choices": [{"message": {"content": KEY}}]}), r"replied '\*\*\*', but it needs"),
        (500, KEY, r"HTTP status 500 and '\*\*\*'; look into the server's log"),
    ],
)
def test_key_is_hidden_in_errors(server: Server, status: int, body: str, message: str) -> None:
    server.responses = [(status, body)]
    with pytest.raises(ValueError, match=message) as caught:
        chat_judge(server, key=KEY).judge(*ROW)
    assert "sk-" not in str(caught.getrepr(style="long"))


@pytest.mark.parametrize("key", ["sk-1 2", "sk-1\r\nX-Other: 1", "sk-\u2026"])
def test_key_that_no_header_can_hold_raises_without_showing_it(key: str) -> None:
    with pytest.raises(ValueError, match="key has blanks or other characters than ASCII") as caught:
        ChatJudge("http://127.0.0.1/v1", "gpt-tiny", key)
    assert "sk-" not in str(caught.value)


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_busy_or_broken_server_is_asked_again(server: Server, status: int) -> None:
    server.reply("FAILS: only a caption")
    server.responses = [(status, "busy"), (status, "busy"), *server.responses]
    assert chat_judge(server).judge(*ROW) == "only a caption"
    assert len(server.requests) == 3


NO_TEMPERATURE = json.dumps(
    {
        "error": {
            "message": "Unsupported value: 'temperature' does not support 0 with this model.",
            "type": "invalid_request_error",
            "param": "temperature",
            "code": "unsupported_value",
        }
    }
)


def test_model_that_refuses_a_temperature_is_asked_without_it(server: Server) -> None:
    server.reply("FAILS: only a caption", "FOLLOWS")
    server.responses = [(400, NO_TEMPERATURE), *server.responses]
    judge = chat_judge(server)
    assert judge.judge(*ROW) == "only a caption"
    assert judge.judge(*ROW) is None
    bodies = [json.loads(body) for _, _, body in server.requests]
    assert [body.pop("temperature", None) for body in bodies] == [0, None, None]
    assert bodies[0] == bodies[1] == bodies[2]


def test_model_that_refuses_without_a_temperature_too_raises(server: Server) -> None:
    server.responses = [(400, NO_TEMPERATURE)]
    with pytest.raises(ValueError, match=r"HTTP status 400 and .*temperature.*; check the URL and the model"):
        chat_judge(server).judge(*ROW)
    assert len(server.requests) == 2


def test_server_that_stays_broken_raises(server: Server) -> None:
    server.responses = [(503, "loading the model")]
    message = rf"^The judge at {server.url} answered with HTTP status 503 and 'loading the model'; look into"
    with pytest.raises(ValueError, match=message):
        chat_judge(server).judge(*ROW)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("status", "mending"),
    [
        (400, "check the URL and the model"),
        (401, "set OPENAI_API_KEY to a key of this server"),
        (403, "set OPENAI_API_KEY to a key that may use this model"),
        (404, "check the model's name, and the URL"),
        (307, "check the URL and the model"),
    ],
)
def test_refusal_raises_at_once(server: Server, status: int, mending: str) -> None:
    server.responses = [(status, "no")]
    with pytest.raises(ValueError, match=rf"The judge at {server.url} .* status {status} and 'no'; {mending}"):
        chat_judge(server).judge(*ROW)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "body",
    [
        "",
        "<html>Hello</html>",
        "[]",
        "null",
        '{"choices": []}',
        '{"choices": [{"message": {"content": ["FOLLOWS"]}}]}',
    ],
)
def test_response_that_is_no_completion_raises(server: Server, body: str) -> None:
    server.responses = [(200, body)]
    with pytest.raises(
        ValueError, match=rf"The judge at {server.url} .* no chat completion; give the URL of an OpenAI"
    ):
        chat_judge(server).judge(*ROW)
    assert len(server.requests) == 1


@pytest.mark.parametrize("content", ["As an AI, I like it.", "", None])
def test_reply_without_a_verdict_raises(server: Server, content: str | None) -> None:
    server.reply(content)
    with pytest.raises(UnclearVerdictError, match=f"The judge replied '{content or ''}', but it needs to be one line"):
        chat_judge(server).judge(*ROW)
    assert len(server.requests) == 1


def test_refused_connection_raises() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    with pytest.raises(ValueError, match=rf"The judge at {url} cannot be reached \(.*refused\); start its server"):
        ChatJudge(url, "gpt-tiny", max_retries=1).judge(*ROW)


def test_silent_server_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "TIMEOUT_SECONDS", 0.02)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        with pytest.raises(ValueError, match=rf"The judge at {url} cannot be reached \(timed out\)"):
            ChatJudge(url, "gpt-tiny", max_retries=1).judge(*ROW)


def test_server_that_hangs_up_is_asked_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        callers = []

        def hang_up() -> None:
            for line in (b"", b"what?\r\n\r\n"):
                connection, _ = listening.accept()
                with connection:
                    callers.append(connection.recv(65536))
                    connection.sendall(line)

        thread = Thread(target=hang_up)
        thread.start()
        with pytest.raises(ValueError, match="cannot be reached"):
            ChatJudge(url, "gpt-tiny", max_retries=1).judge(*ROW)
        thread.join()
    assert len(callers) == 2


def test_missing_openai_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match="openai"):
        ChatJudge("http://127.0.0.1/v1", "gpt-tiny")


@pytest.mark.parametrize("url", ["", "127.0.0.1/v1", "ftp://host/v1", "http://", "http:///v1", "http://host:x/v1"])
def test_url_of_another_form_raises(url: str) -> None:
    with pytest.raises(ValueError, match=f"The judge's URL is '{url}'; it needs the form http://host/v1"):
        ChatJudge(url, "gpt-tiny")


@pytest.mark.parametrize("url", ["http://host/v 1", "http://host/v1\n", "http://h\u00f6st/v1"])
def test_url_with_other_characters_raises(url: str) -> None:
    with pytest.raises(ValueError, match="it needs the form http://host/v1"):
        ChatJudge(url, "gpt-tiny")


@pytest.mark.parametrize("url", ["http://me:secret@host/v1", "http://host/v1?key=secret", "https://me:secret@h x"])
def test_url_with_a_password_raises_without_showing_it(url: str) -> None:
    with pytest.raises(ValueError, match="has a password, a query or a fragment") as caught:
        ChatJudge(url, "")
    assert "secret" not in str(caught.value)


# Local models


def write_llama(folder: Path, model: LlamaForCausalLM, template: str | None) -> str:
    tokenizer = byte_tokenizer(chatml=True)
    tokenizer.chat_template = template
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def random_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=261,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=4,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def opinionated_llama() -> LlamaForCausalLM:
    """Says `FAILS: my` behind a line end, whatever came before; it would rather draw its words."""
    model = random_llama()
    tokens = byte_tokenizer(chatml=True)("\nFAILS: my<|im_end|>")["input_ids"]
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        for token, following in pairwise(tokens):
            model.lm_head.weight[following] += model.model.embed_tokens.weight[token]
    model.generation_config.update(do_sample=True, temperature=10.0, top_k=0)
    return model


@pytest.fixture(scope="module")
def random_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_llama(tmp_path_factory.mktemp("judge"), random_llama(), CHATML)


def test_local_judge_gives_the_likeliest_verdict_behind_the_chat_template(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "judge", opinionated_llama(), CHATML)
    judge: Judge = LocalJudge(folder)
    assert judge.name == f"local:{folder}"
    for answer in NASTY:
        assert judge.judge("story", "Tell.", answer, CONTEXT) == "my"


def test_local_judge_without_a_verdict_raises(random_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "MAX_NEW_TOKENS", 16)
    with pytest.raises(UnclearVerdictError, match=r"The judge replied '.+', but it needs to be one line, FOLLOWS or"):
        LocalJudge(random_folder).judge("story", "Tell.", "FOLLOWS", CONTEXT)


def test_local_judge_asks_through_the_chat_template(tmp_path: Path) -> None:
    template = "{{ raise_exception('template got ' ~ messages|length ~ messages[0].role ~ messages[0].content) }}"
    judge = LocalJudge(write_llama(tmp_path / "raising", random_llama(), template))
    with pytest.raises(Exception, match=r"^template got 1userA system listens") as caught:
        judge.judge(*ROW)
    assert str(caught.value).endswith(judge_prompt(*ROW))


def test_local_judge_without_a_chat_template_raises(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "bare", random_llama(), None)
    with pytest.raises(ValueError, match=r"tokenizer of the judge '.*bare' has no chat template; give the folder"):
        LocalJudge(folder)


def test_local_judge_that_cannot_be_loaded_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"judge '.*' cannot be loaded \(.+\); give the folder or Hub id of a causal"):
        LocalJudge(str(tmp_path))


# The option of a command line


def test_parsed_judges_are_of_their_kind(server: Server, random_folder: str) -> None:
    assert parse_judge("rules").name == "rules"
    judge = parse_judge(f"{server.url}/#org/model:free#2")
    assert judge.name == f"openai:org/model:free#2 at {server.url}"
    server.reply("FAILS: only a transcript")
    assert judge.judge(*ROW) == "only a transcript"
    assert parse_judge(random_folder).name == f"local:{random_folder}"


@pytest.mark.parametrize("text", ["http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1#"])
def test_endpoint_without_a_model_raises(text: str) -> None:
    with pytest.raises(ValueError, match=r"needs the name of a model; give http://127\.0\.0\.1:8000/v1#MODEL"):
        parse_judge(text)


@pytest.mark.parametrize("text", ["", "./missing", "/no/such/folder", "openai:gpt-tiny", "ftp://host/v1#gpt-tiny"])
def test_other_text_names_no_judge_and_raises(text: str) -> None:
    with pytest.raises(ValueError, match=f"no judge and no folder '{text}'; give 'rules', http://host/v1#MODEL, or"):
        parse_judge(text)


def test_hub_id_that_is_not_on_this_machine_raises_offline() -> None:
    with pytest.raises(ValueError, match=r"The judge 'nobody/no-such-judge' cannot be loaded"):
        parse_judge("nobody/no-such-judge")
