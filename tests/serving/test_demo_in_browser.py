"""The demo as a visitor uses it, in a Chromium without a window.

The model is salmonn-smol where `SALMONN_SMOL` names its folder, else a tiny one. `SALMONN_SCREENSHOT` names a PNG to
write of the page: `make demo-screenshot` renews that of the docs.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import soundfile
from conftest import SAMPLING_RATE, make_clip

from modeling_salmonn import AudioTextPipeline
from modeling_salmonn.hub import build_smol
from modeling_salmonn.hub.loading import load_pipeline


pytest.importorskip("gradio", reason="the extra demo is not installed")
pytest.importorskip("selenium", reason="selenium is not installed")

from demo_server import served_demo
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait


pytestmark = pytest.mark.slow

CLIPS = Path(build_smol.__file__).parent / "salmonn-smol" / "clips"
DEADLINE_SECONDS = 300  # of a machine that does much else
CLICK_SECONDS = 30  # in which a click has to take effect; those on a page that is still being set up are lost
NEW_TOKENS = 60
OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # which needs another user than root
    "--disable-dev-shm-usage",
    "--window-size=1280,1200",
    "--use-fake-ui-for-media-stream",  # a microphone that beeps, and needs no permission
    "--use-fake-device-for-media-stream",
)


class Visitor:
    """What a visitor sees and does."""

    def __init__(self, driver: Any):
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get(url)
        self.wait_for(lambda: self.find("#question textarea"))

    def find(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def wait_for(self, condition: Callable[[], Any], seconds: float = DEADLINE_SECONDS) -> Any:
        wait = WebDriverWait(self.driver, seconds, ignored_exceptions=[StaleElementReferenceException])
        return wait.until(lambda _: condition())

    def click(self, selector: str, text: str = "") -> None:
        def click() -> bool:
            chosen = [element for element in self.find(selector) if text in element.text]
            if chosen:
                chosen[0].click()
            return bool(chosen)

        self.wait_for(click)

    def ask(self, question: str) -> None:
        (box,) = self.find("#question textarea")
        box.send_keys(question, Keys.ENTER)

    def question(self) -> str:
        (box,) = self.find("#question textarea")
        return str(box.get_attribute("value"))

    def said(self, role: str) -> list[str]:
        """The texts of all messages of a role, read in one step: the page may be changing."""
        script = "return [...document.querySelectorAll(arguments[0])].map(message => message.innerText.trim())"
        texts: list[str] = self.driver.execute_script(script, f"#conversation .{role}.message")
        return texts

    def picture(self) -> str:
        """What the picture shows, if there is one."""
        pictures = self.find("#spectrogram img")
        return str(pictures[0].get_attribute("src")) if pictures else ""

    def upload(self, file: Path) -> None:
        (box,) = self.wait_for(lambda: self.find("#clip input[type=file]"))
        box.send_keys(str(file))

    def is_told(self, part: str) -> bool:
        return any(part in message.text for message in self.find(".toast-body"))

    def take_example(self, name: str) -> None:
        """Click an example until it is shown: seldom, since a second click begins the conversation anew."""
        before = self.picture()

        def is_shown() -> bool:
            return self.picture() not in ("", before)

        for _ in range(DEADLINE_SECONDS // CLICK_SECONDS):
            self.click(".gallery-item", name)
            with suppress(TimeoutException):
                self.wait_for(is_shown, CLICK_SECONDS)
                return
        assert is_shown()


@pytest.fixture(scope="module")
def pipe(saved_folder: Path) -> AudioTextPipeline:
    return load_pipeline(os.environ.get("SALMONN_SMOL", str(saved_folder)), "cpu", "float32")


@pytest.fixture(scope="module")
def url(pipe: AudioTextPipeline) -> Iterator[str]:
    with served_demo(pipe, Path(pipe.model.name_or_path).name, NEW_TOKENS) as url:
        yield url


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("there is no chromium with a chromedriver: apt-get install chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for option in OPTIONS:
        options.add_argument(option)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def visitor(driver: Any, url: str) -> Visitor:
    visitor = Visitor(driver)
    visitor.open(url)
    return visitor


def greedy(pipe: AudioTextPipeline, clip: str, question: str, **options: Any) -> str:
    clip_file = str(CLIPS / f"{clip}.opus")
    answer = pipe(clip_file, text=question, max_new_tokens=NEW_TOKENS, num_beams=1, **options)
    return " ".join(answer[0]["generated_text"].split())


def test_conversation_about_an_example(visitor: Visitor, pipe: AudioTextPipeline) -> None:
    visitor.take_example("speech")
    question = visitor.question()
    assert question
    visitor.ask("")
    expected = greedy(pipe, "speech", question)
    visitor.wait_for(lambda: [" ".join(text.split()) for text in visitor.said("bot")] == [expected])
    assert visitor.question() == ""
    visitor.ask("Which words are important?")
    visitor.wait_for(lambda: len(visitor.said("bot")) == 2 and not visitor.find("#conversation .pending"))
    assert visitor.said("user") == [question, "Which words are important?"]
    clip = visitor.picture()
    visitor.click("#explain")
    visitor.wait_for(lambda: visitor.picture() not in ("", clip))
    if screenshot := os.environ.get("SALMONN_SCREENSHOT"):
        visitor.driver.save_screenshot(screenshot)


def test_another_clip_begins_another_conversation(visitor: Visitor) -> None:
    visitor.take_example("speech")
    visitor.ask("")
    visitor.wait_for(lambda: visitor.said("bot"))
    visitor.take_example("machine")
    visitor.wait_for(lambda: not visitor.said("user") and not visitor.said("bot"))


def test_task_fills_in_its_instruction(visitor: Visitor) -> None:
    visitor.click("#task input")
    visitor.click("#task [role=option], [role=listbox] [role=option]", "en2de")
    visitor.wait_for(lambda: visitor.question() == "Translate what you hear into German.")


def test_slider_sets_the_lora_scale(visitor: Visitor, pipe: AudioTextPipeline) -> None:
    visitor.take_example("music")
    question = visitor.question()
    (number,) = visitor.find("#scale input[type=number]")
    number.send_keys(Keys.CONTROL, "a")
    number.send_keys("0", Keys.TAB)
    visitor.ask("")
    expected = greedy(pipe, "music", question, lora_scale=0.0)
    assert expected != greedy(pipe, "music", question)
    visitor.wait_for(lambda: [" ".join(text.split()) for text in visitor.said("bot")] == [expected])


def test_recording_becomes_a_clip(visitor: Visitor) -> None:
    visitor.click("#clip button[aria-label='Record audio']")
    visitor.click("#clip button.record-button")
    visitor.wait_for(lambda: [time for time in visitor.find("#clip time") if time.text not in ("", "0:00")])
    visitor.click("#clip button.stop-button")
    visitor.wait_for(visitor.picture)


def test_what_cannot_be_done_is_told(visitor: Visitor, tmp_path: Path) -> None:
    visitor.ask("What is it?")
    visitor.wait_for(lambda: visitor.is_told("There is no clip yet"))
    assert visitor.question() == "What is it?"
    assert visitor.said("user") == []
    visitor.click("#explain")
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no audio" * 100)
    visitor.upload(broken)
    visitor.wait_for(lambda: visitor.is_told("The clip cannot be read"))


def test_clip_that_is_too_long_is_told(visitor: Visitor, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.flac", 0 * make_clip(61), SAMPLING_RATE)
    visitor.upload(tmp_path / "long.flac")
    visitor.wait_for(lambda: visitor.is_told("The clip is longer than 60 s; cut it."))


def test_file_that_is_too_large_is_told(visitor: Visitor, tmp_path: Path) -> None:
    (tmp_path / "large.wav").write_bytes(bytes(20 * 2**20 + 1))
    visitor.upload(tmp_path / "large.wav")
    visitor.wait_for(lambda: visitor.is_told("exceed the maximum allowed size"))
