"""The chat page: each model's own process, and the page in a real browser."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium, needs_browser
from chat_cases import CHATML

from quantize.conversion import convert
from quantize.engines.isolated.environment import installed
from quantize.errors import BadInput, StepFailed, Unsupported
from quantize.process import child_environment
from quantize.recipe import RunOptions
from serving.page.chat import Chat, Settings, pick
from serving.page.environment import GRADIO
from serving.page.session import name_of, try_
from serving.serve import free_port

RUN = RunOptions(device="cpu", threads=1)
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def artifacts(demo_checkpoint: Path, tmp_path_factory: Any) -> list[Path]:
    """Two, of the demo's model with a chat template."""
    import shutil

    folder = tmp_path_factory.mktemp("source") / "demo"
    shutil.copytree(demo_checkpoint, folder)
    (folder / "chat_template.jinja").write_text(CHATML)
    found = []
    for recipe in ("gguf-q4_k_m", "bfloat16"):
        found.append(folder.parent / recipe)
        convert(folder, recipe, found[-1], run=RUN, verify="none")
    return found


def test_answers_come_piece_by_piece_and_are_the_greedy_ones(artifacts: list[Path]) -> None:
    for folder in artifacts:
        chat = Chat(folder, RUN)
        assert chat.template is not None
        pieces = list(chat.answer(HELLO, Settings(tokens=12)))
        text = "".join(piece.get("text", "") for piece in pieces)
        ids = chat.ids(HELLO)
        assert ids == chat.runtime.tokenize(
            "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n", False
        )
        wanted = chat.runtime.generate(ids, 12)
        end = next((i for i, token in enumerate(wanted) if token in chat.ends), 12)
        assert text == chat.runtime.detokenize(wanted[:end])
        done = pieces[-1]
        assert done["tokens"] == end
        assert done["memory_bytes"] > 1e6
        assert done["done"] == ("length" if end == 12 else "end")
        if end > 1:
            assert done["tokens_per_s"] > 0
        chat.runtime.close()


def test_a_conversation_that_fills_the_context_is_a_failed_step(artifacts: list[Path]) -> None:
    chat = Chat(artifacts[1], RUN)
    with pytest.raises(StepFailed, match="clear it"):
        list(chat.answer([{"role": "user", "content": "word " * 2000}], Settings()))


def test_tokens_are_drawn_by_their_probability() -> None:
    random = np.random.default_rng(0)
    logits = np.log(np.asarray([0.1, 0.2, 0.7], np.float32))
    drawn = np.bincount([pick(logits, 1.0, random) for _ in range(4000)], minlength=3) / 4000
    assert np.abs(drawn - [0.1, 0.2, 0.7]).max() < 0.03  # four standard errors of 0.0075
    assert pick(logits, 0, random) == 2
    with pytest.raises(StepFailed, match="not finite"):
        pick(np.asarray([np.nan, 1], np.float32), 1.0, random)


def test_names_and_bad_input(artifacts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert name_of(artifacts[0]) == "gguf-q4_k_m"
    with pytest.raises(BadInput, match="no such folder"):
        name_of(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="at most 6"):
        try_([artifacts[0]] * 7, RUN, port=free_port())
    monkeypatch.setenv("QUANTWRIGHT_ENVIRONMENTS", str(tmp_path / "none"))
    with pytest.raises(Unsupported, match="quantwright try --install"):
        try_(artifacts, RUN, port=free_port())


@pytest.fixture(scope="module")
def page(artifacts: list[Path], tmp_path_factory: Any) -> Iterator[str]:
    """The command's page."""
    if installed(GRADIO) is None:
        pytest.skip("gradio is not installed: quantwright try --install")
    command = [sys.executable, "-m", "quantize.cli", "try", *map(str, artifacts), "--json", "--threads", "1"]
    environment = child_environment(PYTHONPATH=str(Path(__file__).parents[3]))
    with subprocess.Popen(
        [*command, "--port", str(free_port())], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            line = next((line for line in process.stdout if line.startswith('{"url"')), "")
            assert line, f"ended with {process.poll()}"
            yield json.loads(line)["url"]
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 128 + signal.SIGTERM
        finally:
            process.kill()


def until(what: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)
    return found


@pytest.mark.long
@needs_browser
def test_two_models_answer_side_by_side(page: str, tmp_path: Path) -> None:
    with chromium(tmp_path / "profile") as browser:
        browser.open(page)
        until(lambda: browser.run("return document.querySelectorAll('#say textarea').length"))
        browser.type("#say textarea", "The first thing that <img src=x onerror=window.owned=1> we see")
        browser.click("#send")

        def figures() -> list[str]:
            return [
                browser.run(
                    f"return document.querySelector('#figures-{i} textarea, #figures-{i} input').value"
                )
                for i in (0, 1)
            ]

        until(lambda: all("tokens/s" in line for line in figures()), 120)
        assert all("MB" in line and "first after" in line for line in figures())
        kept = os.environ.get("QUANTWRIGHT_SCREENSHOT")
        if kept:
            import base64

            Path(kept).write_bytes(base64.b64decode(browser.call("GET", "/screenshot")))
        said = [browser.run(f"return document.querySelector('#chat-{i}').innerText") for i in (0, 1)]
        assert all("The first thing that <img src=x" in text for text in said), said  # as text, not as markup
        assert not browser.run("return window.owned")
        assert all(len(text) > 120 for text in said)
        assert "gguf-q4_k_m" in said[0]
        assert "bfloat16" in said[1]
        browser.click("#clear")
        until(lambda: figures() == ["", ""])
        asked = [
            url for url in browser.requested() if not url.startswith(("data:", "blob:", page, "chrome:"))
        ]
        assert asked == []


def test_the_lock_is_whole() -> None:
    assert GRADIO.version == "6.31.0"
    assert GRADIO.lock_text.count("--hash=sha256:") >= len(GRADIO.pins) > 40
