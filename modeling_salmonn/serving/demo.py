"""The page in a browser: a clip and its spectrogram on the left, the conversation about it on the right."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr

from modeling_salmonn import hub
from modeling_salmonn.serving.attribution_figure import draw_clip, draw_explanation
from modeling_salmonn.serving.clip_chat import ClipChat, Turn, task_instructions


# Bundled clips, each with a question that salmonn-smol was trained on.
EXAMPLES = {
    "speech": "What does the speaker say? Reply with the words only.",
    "speech_over_sound": "Write down exactly what is being said.",
    "music": "Which instruments play?",
    "animal": "What makes this sound?",
    "machine": "Write a short caption for these sounds.",
}
CLIPS = Path(hub.__file__).parent / "salmonn-smol" / "clips"
WAITING = 16  # questions of all users; a further one is refused
KEPT_SECONDS = 3600  # of what was uploaded
UPLOAD_VARIABLE = "GRADIO_TEMP_DIR"
Message = dict[str, Any]  # of the page: role and content
PICTURE_WIDTH = 6.5  # inches, for letters of a readable size in half a page
# Fonts of the machine: the stock themes fetch theirs from elsewhere.
THEME = gr.themes.Soft(
    primary_hue="orange", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["monospace"]
)


class DemoPage:
    """The components of the page, and what happens between them.

    Args:
        chat: answers.
        name: of the model, for the title.
    """

    def __init__(self, chat: ClipChat, name: str):
        self.chat = chat
        # made first, since the examples on the left fill it
        self.question = gr.Textbox(
            placeholder="Ask about the clip",
            submit_btn=True,
            container=False,
            scale=1,
            elem_id="question",
            render=False,
        )
        with gr.Blocks(title=name, analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as self.blocks:
            gr.Markdown(f"# {name}\nAsk it, in words, about speech, sounds and music.")
            with gr.Row():
                with gr.Column():
                    self._add_clip()
                with gr.Column():
                    self._add_conversation()
            self._connect()

    def _add_clip(self) -> None:
        limits = f"at most {self.chat.max_seconds:g} s and {self.chat.max_bytes / 2**20:g} MB"
        self.clip = gr.Audio(label=f"Clip: {limits}", type="filepath", elem_id="clip", editable=False, buttons=[])
        gr.Examples(
            [[str(CLIPS / f"{clip}.opus"), question] for clip, question in EXAMPLES.items()],
            inputs=[self.clip, self.question],
            example_labels=[clip.replace("_", " ") for clip in EXAMPLES],
            label="Examples",
            cache_examples=False,
        )
        self.picture = gr.Plot(show_label=False, elem_id="spectrogram")
        self.explain = gr.Button("Which seconds does the last answer rest on?", elem_id="explain")

    def _add_conversation(self) -> None:
        with gr.Row():
            self.task = gr.Dropdown(
                [(f"{name}: {instruction}", instruction) for name, instruction in task_instructions()],
                value=None,
                label="Task",
                info="Puts its instruction into the question.",
                elem_id="task",
            )
            self.scale = self._make_slider()
        self.conversation = gr.Chatbot(
            placeholder="Take a clip, then ask about it.",
            render_markdown=False,
            height=480,
            show_label=False,
            elem_id="conversation",
            buttons=["copy"],
        )
        with gr.Row(equal_height=True):
            self.question.render()
            self.stop = gr.Button("Stop", scale=0, min_width=80, elem_id="stop")

    def _make_slider(self) -> gr.Slider:
        trained = self.chat.trained_scale
        if trained is None:
            return gr.Slider(0, 1, value=0, visible=False)
        info = f"Trained at {trained:g}; 0 leaves its update out."
        return gr.Slider(0, 2 * trained, value=trained, step=0.1, label="LoRA scale", info=info, elem_id="scale")

    def _connect(self) -> None:
        inputs: list[Any] = [self.conversation, self.clip, self.scale]
        hidden: dict[str, Any] = {"api_visibility": "undocumented"}
        answering = self.question.submit(
            self.answer, [self.question, *inputs], [self.conversation, self.question], show_progress="hidden"
        )
        self.stop.click(None, cancels=answering, **hidden)
        # Another clip, another conversation: the old one is gone before the clip is seen, and can be asked about.
        changed = self.clip.change(list, None, self.conversation, cancels=answering, queue=False, **hidden)
        changed.then(self.show_clip, self.clip, self.picture, concurrency_limit=None, **hidden)
        self.task.input(lambda instruction: instruction, self.task, self.question, queue=False, **hidden)
        self.explain.click(self.show_explanation, inputs, self.picture, **hidden)

    def answer(
        self, question: str, messages: list[Message], clip: str | None, scale: float
    ) -> Iterator[tuple[list[Message], str]]:
        """The messages with the question and what has been said up to then, again and again; and an empty question.

        What is wrong is told in a message, and leaves both as they were.
        """
        try:
            turns = finished_turns(messages)
            saying = self.chat.stream_answer(self.chat.read_clip(clip), turns, question, self._scale(scale))
            asked = [*messages, {"role": "user", "content": question}]
            yield asked, ""
            for said in saying:
                yield [*asked, {"role": "assistant", "content": said}], ""
        except ValueError as error:
            gr.Warning(str(error))
            yield messages, question

    def show_clip(self, clip: str | None) -> Any:
        """The spectrogram of a clip; nothing of none, or of what cannot be read."""
        if clip is None:
            return None
        try:
            return draw_clip(self.chat.read_clip(clip), PICTURE_WIDTH)
        except ValueError as error:
            gr.Warning(str(error))
            return None

    def show_explanation(self, messages: list[Message], clip: str | None, scale: float) -> Any:
        """The spectrogram with what the last answer rests on."""
        try:
            waveform = self.chat.read_clip(clip)
            explanation = self.chat.explain_answer(waveform, finished_turns(messages), self._scale(scale))
            return draw_explanation(explanation, waveform, PICTURE_WIDTH)
        except ValueError as error:
            gr.Warning(str(error))
            return gr.skip()

    def _scale(self, scale: float) -> float | None:
        return None if self.chat.trained_scale is None else scale


@contextmanager
def own_uploads() -> Iterator[None]:
    """A folder for what one page copies and is sent; make the page inside.

    Demos share gradio's folder, where each at its end deletes files that another one still needs.
    """
    before = os.environ.get(UPLOAD_VARIABLE)
    with TemporaryDirectory(prefix="salmonn-demo-") as folder:
        os.environ[UPLOAD_VARIABLE] = folder
        try:
            yield
        finally:
            os.environ.pop(UPLOAD_VARIABLE)
            if before is not None:
                os.environ[UPLOAD_VARIABLE] = before


def launch_demo(page: DemoPage, host: str, port: int) -> str:
    """Start the server of a page, which runs until `page.blocks.close()`.

    Args:
        page: to serve.
        host: address to listen at.
        port: to listen at.

    Returns:
        The URL of the page.

    Raises:
        OSError: if the port is taken.
    """
    _, url, _ = page.blocks.queue(max_size=WAITING).launch(
        server_name=host,
        server_port=port,
        max_file_size=page.chat.max_bytes,
        theme=THEME,
        footer_links=[],
        share=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    return url


def finished_turns(history: list[Message]) -> list[Turn]:
    """Questions and answers of the messages that the page shows; a question that got no answer is left out."""
    turns = []
    for asked, answer in pairwise(history):
        if asked["role"] == "user" and answer["role"] == "assistant":
            turns.append((message_text(asked), message_text(answer)))
    return turns


def message_text(message: Message) -> str:
    """The text of a message of the page, whose content is a text or a list of parts."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")
