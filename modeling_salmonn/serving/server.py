"""An OpenAI-compatible server: transformers' own, with what it lacks for SALMONN and for clients that are strangers.

- the application, the generation thread and the answers are those of `transformers serve`
- requests are read by our processor, in threads, so that a slow download stops nobody else
- the model is the one that the server was started with; `NAME@SCALE` asks for another LoRA scale
- limits come before the work: see `limits.py`
"""

import asyncio
import inspect
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from openai.types.audio import Transcription, TranscriptionTextDeltaEvent, TranscriptionTextDoneEvent
from starlette.exceptions import HTTPException
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import GenerateManager, GenerationState

from modeling_salmonn.serving.limits import RequestLimits, error_body
from modeling_salmonn.serving.served_model import ServedModel, UnknownModelError, apply_sampling, require_supported


# The others load models that a client names, or take raw prompts.
SERVED_ROUTES = ("/v1/chat/completions", "/v1/audio/transcriptions", "/v1/models", "/health")
TRANSCRIPTION_FIELDS = {"file", "language", "model", "prompt", "response_format", "stream", "temperature"}


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
        inputs, config = await self.read(body.get("model"), body.get("messages"), body)
        # the tokenizer in place of the processor: stop strings are looked up in its vocabulary
        arguments = (request_id, self.served.model, self.served.processor.tokenizer, body["model"], inputs, config)
        if body.get("stream"):
            return self._streaming(*arguments, gen_manager=self.generations)
        return await self._non_streaming(*arguments, gen_manager=self.generations)

    async def read(self, model: Any, messages: Any, options: dict[str, Any]) -> tuple[Any, Any]:
        """Inputs and generation config of a request.

        Args:
            model: its name in the request.
            messages: chat messages.
            options: the other fields of a chat completion.
        """
        scale = self.served.read_scale(model)
        config = self._build_generation_config(options, self.served.model.generation_config)
        inputs = await asyncio.get_running_loop().run_in_executor(self.readers, self.served.prepare, messages, scale)
        self.served.require_fitting(inputs, config.max_new_tokens)
        return inputs, config

    def _validate_request(self, body: dict) -> None:
        try:
            super()._validate_request(body)
        except HTTPException as error:
            raise ValueError(f"{error.detail}; this server does not take them, leave them out.") from error

    def _build_generation_config(self, body: dict, model_generation_config: Any, use_cb: bool = False) -> Any:
        # Lengths, temperature and seed are ours: the stock ones take any length, draw nothing at any temperature,
        # and seed the generator of all requests.
        ours = ("max_completion_tokens", "max_tokens", "temperature", "seed")
        others = {name: value for name, value in body.items() if name not in ours}
        try:
            config = super()._build_generation_config(others, model_generation_config, use_cb=use_cb)
        except (TypeError, AttributeError, OverflowError) as error:  # numbers that are none
            raise ValueError(f"An option of the request has a wrong type: {error}") from error
        config.max_new_tokens = model_generation_config.max_new_tokens
        new_tokens = body.get("max_completion_tokens")
        new_tokens = body.get("max_tokens") if new_tokens is None else new_tokens
        apply_sampling(config, new_tokens, body.get("temperature"), bool(body.get("stream")))
        return config


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
            yield f"data: {json.dumps(error_body(piece.msg, 500))}\n\n"
            return
        done = TranscriptionTextDoneEvent(text="".join(pieces).strip(), type="transcript.text.done")
        yield f"data: {done.model_dump_json(exclude_none=True)}\n\n"
    finally:
        streamer.cancel()  # of a client that has left; nothing where it is over


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
        return JSONResponse(error_body(str(error), 404), 404)

    @app.exception_handler(ValueError)
    async def answer_value_error(request: Request, error: ValueError) -> JSONResponse:
        return JSONResponse(error_body(str(error), 400), 400)

    @app.exception_handler(RequestValidationError)
    async def answer_invalid_body(request: Request, error: RequestValidationError) -> JSONResponse:
        reasons = "; ".join(detail["msg"] for detail in error.errors())
        message = f"The body must be a JSON object, of the content type application/json: {reasons}."
        return JSONResponse(error_body(message, 400), 400)

    @app.exception_handler(HTTPException)
    async def answer_http_error(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(error_body(str(error.detail), error.status_code), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def answer_failure(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(error_body("The server could not answer; its log tells why.", 500), 500)
