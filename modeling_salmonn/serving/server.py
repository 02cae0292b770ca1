"""An OpenAI-compatible server: transformers' own, with what it lacks for SALMONN and for clients that are strangers.

- the application, the generation thread and the form of answers are those of `transformers serve`
- lengths, temperatures and stop strings are our own: the stock ones have no limits, and seed all requests at once
- errors and the ends of streams are OpenAI's
- requests are read by our processor, in threads, so that a slow download stops nobody else
- the model is the one that the server was started with; `NAME@SCALE` asks for another LoRA scale
- limits come before the work: see `limits.py`
"""

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from openai.types.audio import Transcription, TranscriptionTextDeltaEvent, TranscriptionTextDoneEvent
from openai.types.completion_usage import CompletionUsage
from starlette.exceptions import HTTPException
from transformers import StoppingCriteriaList
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import GenerateManager, GenerationState

from modeling_salmonn.serving.limits import RequestLimits, error_body
from modeling_salmonn.serving.served_model import ServedModel, UnknownModelError, read_sampling, require_supported
from modeling_salmonn.serving.stop_strings import StopAtText, StopCutter, cut_at_stop, read_stops


# The others load models that a client names, or take raw prompts.
SERVED_ROUTES = ("/v1/chat/completions", "/v1/audio/transcriptions", "/v1/models", "/health")
TRANSCRIPTION_FIELDS = {"file", "language", "model", "prompt", "response_format", "stream", "temperature"}
LAST_EVENT = "data: [DONE]\n\n"  # of a chat's stream


class CountedGenerations(GenerateManager):
    """The generation thread, which knows how many jobs it has."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: set[Any] = set()

    def submit(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        """Queue a job; returns a future that blocks."""
        return self._counted(super().submit(fn, *args, **kwargs))

    def async_submit(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        """Queue a job; returns a future to await."""
        return self._counted(super().async_submit(fn, *args, **kwargs))

    def _counted(self, future: Any) -> Any:
        self.jobs.add(future)
        future.add_done_callback(self.jobs.discard)
        return future


@dataclass(frozen=True, eq=False)
class ChatRequest:
    """A chat completion that has been read.

    Args:
        id: its name in what is sent back.
        model: the name that it was asked by.
        inputs: of `generate`.
        config: generation config.
        stops: stop strings.
    """

    id: str
    model: str
    inputs: Any
    config: Any
    stops: tuple[str, ...]

    def ending(self, new_tokens: int, is_cut: bool) -> dict[str, Any]:
        """Why an answer ended, and how many tokens there were.

        Args:
            new_tokens: of the answer.
            is_cut: whether a stop string ended it.
        """
        prompt_tokens = self.inputs["input_ids"].shape[1]
        usage = CompletionUsage(
            prompt_tokens=prompt_tokens, completion_tokens=new_tokens, total_tokens=prompt_tokens + new_tokens
        )
        ran_out = new_tokens >= self.config.max_new_tokens and not is_cut
        return {"finish_reason": "length" if ran_out else "stop", "usage": usage}


class ChatHandler(ChatCompletionHandler):
    """Chat completions about audio: `input_audio` and `audio_url` parts, streams, LoRA scales.

    Args:
        served: the model.
        generations: its generation thread.
        readers: threads that read and decode clips.
    """

    def __init__(self, served: ServedModel, generations: CountedGenerations, readers: ThreadPoolExecutor):
        super().__init__(served, GenerationState())
        self.served, self.generations, self.readers = served, generations, readers

    async def handle_request(self, body: dict, request_id: str) -> Response:
        """Answer a request; see `ChatCompletionHandler`."""
        self._validate_request(body)
        require_supported(body)
        stops = read_stops(body.get("stop"))
        inputs, config = await self.read(body.get("model"), body.get("messages"), body)
        tokenizer = self.served.processor.tokenizer
        if stops:
            criterion = StopAtText(tokenizer, stops, inputs["input_ids"].shape[1])
            inputs["stopping_criteria"] = StoppingCriteriaList([criterion])
        request = ChatRequest(request_id, body["model"], inputs, config, stops)
        arguments = (self.served.model, tokenizer, inputs, config)
        if body.get("stream"):
            queue, streamer = self.generations.generate_streaming(*arguments, request_id=request_id)
            return StreamingResponse(self._events(request, queue, streamer), media_type="text/event-stream")
        text, _, ids = await self.generations.generate_non_streaming(*arguments, request_id=request_id)
        answer = cut_at_stop(text, stops)
        ending = request.ending(len(ids), is_cut=answer != text)
        return JSONResponse(self._build_completion(request_id, answer, request.model, **ending))

    async def read(self, model: Any, messages: Any, options: dict[str, Any]) -> tuple[Any, Any]:
        """Inputs and generation config of a request.

        Args:
            model: its name in the request.
            messages: chat messages.
            options: the other fields of a chat completion.
        """
        scale = self.served.read_scale(model)
        config = read_sampling(self.served.model.generation_config, options)
        inputs = await asyncio.get_running_loop().run_in_executor(self.readers, self.served.prepare, messages, scale)
        self.served.require_fitting(inputs, config.max_new_tokens)
        return inputs, config

    def _validate_request(self, body: dict) -> None:
        try:
            super()._validate_request(body)
        except HTTPException as error:
            raise ValueError(f"{error.detail}; this server does not take them, leave them out.") from error

    async def _events(self, request: ChatRequest, queue: Any, streamer: Any) -> AsyncIterator[str]:
        """The pieces of an answer as OpenAI's events."""
        cutter = StopCutter(request.stops)

        def chunk(**fields: Any) -> str:
            return self._build_chunk_sse(request.id, model=request.model, **fields)

        try:
            yield chunk(role="assistant")
            while isinstance(piece := await queue.get(), str):
                if told := cutter.add(piece):
                    yield chunk(content=told)
            if piece is not None:  # the generation failed
                yield _failure_event(piece)
            else:
                if told := cutter.end():
                    yield chunk(content=told)
                yield chunk(**request.ending(streamer.total_tokens, cutter.is_cut))
            yield LAST_EVENT
        finally:
            streamer.cancel()  # of a client that has left; nothing where it is over


class TranscriptionHandler:
    """`/v1/audio/transcriptions`: the stock one returns the prompt along with the words, and has no limits.

    Args:
        chat: reads requests; a transcription is a chat with one clip and the processor's transcription prompt.
    """

    def __init__(self, chat: ChatHandler):
        self.chat, self.served = chat, chat.served

    async def handle_request(self, request: Request) -> Response:
        """Answer a multipart request with `file` and `model`.

        `prompt` takes the place of the instruction; `language` is not needed by the model and changes nothing;
        `response_format` is `json` or `text`.
        """
        async with request.form(max_files=1) as form:
            fields: dict[str, Any] = dict(form)
            file: Any = fields.get("file")
            if not hasattr(file, "read"):
                raise ValueError("A transcription needs a file; send it as the form field 'file'.")
            content = await file.read()
        unknown = sorted(fields.keys() - TRANSCRIPTION_FIELDS)
        if unknown:
            raise ValueError(f"This server does not take {unknown}; it takes {sorted(TRANSCRIPTION_FIELDS)}.")
        form_format = fields.get("response_format") or "json"
        if form_format not in ("json", "text"):
            raise ValueError(f"response_format must be 'json' or 'text', got {form_format!r:.80}.")
        stream = str(fields.get("stream", "")).lower() in ("true", "1")
        instruction = fields.get("prompt") or self.served.processor.default_transcription_prompt
        parts = [{"type": "audio", "audio": content}, {"type": "text", "text": instruction}]
        options = {"temperature": fields.get("temperature"), "stream": stream}
        inputs, config = await self.chat.read(fields.get("model"), [{"role": "user", "content": parts}], options)
        arguments = (self.served.model, self.served.processor.tokenizer, inputs, config)
        if stream:
            queue, streamer = self.chat.generations.generate_streaming(*arguments, request_id="")
            return StreamingResponse(_transcription_events(queue, streamer), media_type="text/event-stream")
        text, *_ = await self.chat.generations.generate_non_streaming(*arguments, request_id="")
        if form_format == "text":
            return PlainTextResponse(text.strip())
        return JSONResponse(Transcription(text=text.strip()).model_dump(exclude_none=True))


async def _transcription_events(queue: Any, streamer: Any) -> AsyncIterator[str]:
    """The pieces of a transcript as OpenAI's events, the whole of it at the end."""
    pieces: list[str] = []
    try:
        while isinstance(piece := await queue.get(), str):
            pieces.append(piece)
            delta = TranscriptionTextDeltaEvent(delta=piece, type="transcript.text.delta")
            yield f"data: {delta.model_dump_json(exclude_none=True)}\n\n"
        if piece is not None:  # the generation failed
            yield _failure_event(piece)
            return
        done = TranscriptionTextDoneEvent(text="".join(pieces).strip(), type="transcript.text.done")
        yield f"data: {done.model_dump_json(exclude_none=True)}\n\n"
    finally:
        streamer.cancel()  # of a client that has left; nothing where it is over


def _failure_event(failure: Any) -> str:
    return f"data: {json.dumps(error_body(failure.msg, 500))}\n\n"


def build_app(served: ServedModel, max_body_bytes: int, max_requests: int) -> FastAPI:
    """The application.

    Args:
        served: the model.
        max_body_bytes: largest body of a request.
        max_requests: requests that are answered or wait at once; more are refused with 503.
    """
    generations = CountedGenerations()
    chat = ChatHandler(served, generations, ThreadPoolExecutor(max_requests, thread_name_prefix="reader"))
    handlers = dict.fromkeys(name for name in inspect.signature(build_server).parameters if name.endswith("_handler"))
    handlers |= {"chat_handler": chat, "transcription_handler": TranscriptionHandler(chat)}
    app = build_server(model_manager=served, generation_state=chat.generation_state, **handlers)
    app.router.routes[:] = [route for route in app.router.routes if route.path in SERVED_ROUTES]
    _add_model_route(app, served)
    _answer_errors(app)
    app.add_middleware(
        RequestLimits,
        max_body_bytes=max_body_bytes,
        max_requests=max_requests,
        unfinished_jobs=lambda: len(generations.jobs),
    )
    return app


def _add_model_route(app: FastAPI, served: ServedModel) -> None:
    @app.get("/v1/models/{name:path}")  # the Hub's names have a slash
    async def describe_model(name: str) -> JSONResponse:
        return JSONResponse(served.describe(name))


def _answer_errors(app: FastAPI) -> None:
    """Answer all errors as OpenAI does."""

    @app.exception_handler(UnknownModelError)
    async def answer_unknown_model(request: Request, error: UnknownModelError) -> JSONResponse:
        return _refusal(str(error), 404)

    @app.exception_handler(ValueError)
    async def answer_value_error(request: Request, error: ValueError) -> JSONResponse:
        return _refusal(str(error), 400)

    @app.exception_handler(RequestValidationError)
    async def answer_invalid_body(request: Request, error: RequestValidationError) -> JSONResponse:
        reasons = "; ".join(detail["msg"] for detail in error.errors())
        message = f"The body must be a JSON object, of the content type application/json: {reasons}."
        return _refusal(message, 400)

    @app.exception_handler(HTTPException)
    async def answer_http_error(request: Request, error: HTTPException) -> JSONResponse:
        return _refusal(str(error.detail), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def answer_failure(request: Request, error: Exception) -> JSONResponse:
        return _refusal("The server could not answer; its log tells why.", 500)


def _refusal(message: str, status: int, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(error_body(message, status), status, headers)
