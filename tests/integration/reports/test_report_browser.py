"""The page in a real browser: Chromium, driven through chromedriver's WebDriver protocol (JSON over HTTP, so
no library)."""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sample_run import RECIPES, quality, subject, write_run

import reports
from quantize.results import results_path, write_results

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.long,  # a browser on a busy machine answers late
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed"),
]

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1280,1000",
)  # fmt: skip
HOSTILE = "<script>window.owned=1</script>"
ENTER, RIGHT = "\ue007", "\ue014"


class Browser:
    """One WebDriver session."""

    def __init__(self, port: int, profile: Path):
        self.root = f"http://127.0.0.1:{port}"
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        self.session = ""
        self.session = self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def call(self, method: str, path: str, body: Any = None) -> Any:
        url = self.root + (f"/session/{self.session}" if self.session else "") + path
        data = json.dumps(body if body is not None else {}).encode() if method == "POST" else None
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {json.load(error)['value']['message']}") from None

    def open(self, page: Path) -> None:
        self.call("POST", "/url", {"url": page.as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        return self.call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def find(self, selector: str) -> str:
        found: dict[str, str] = self.call("POST", "/element", {"using": "css selector", "value": selector})
        return next(iter(found.values()))

    def click(self, selector: str) -> None:
        self.run(
            "document.querySelector(arguments[0]).scrollIntoView({block: 'center', behavior: 'instant'})",
            selector,
        )
        self.call("POST", f"/element/{self.find(selector)}/click")

    def type(self, selector: str, text: str) -> None:
        self.call("POST", f"/element/{self.find(selector)}/clear")
        self.call("POST", f"/element/{self.find(selector)}/value", {"text": text})

    def press(self, *keys: str) -> None:
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.call("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def hover(self, selector: str) -> None:
        self.run(
            "document.querySelector(arguments[0]).scrollIntoView({block: 'center', behavior: 'instant'})",
            selector,
        )
        origin = {"element-6066-11e4-a52e-4f735466cecf": self.find(selector)}
        move = {"type": "pointerMove", "duration": 0, "x": 0, "y": 0, "origin": origin}
        pointer = {
            "type": "pointer",
            "id": "mouse",
            "parameters": {"pointerType": "mouse"},
            "actions": [move],
        }
        self.call("POST", "/actions", {"actions": [pointer]})

    def logs(self, kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("POST", "/se/log", {"type": kind})
        return found

    def requested(self) -> list[str]:
        """Addresses that the page asked for since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self.logs("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("run"))
    hostile = subject("gguf-q4_k_m")
    hostile = type(hostile)(**{**hostile.__dict__, "recipe": HOSTILE, "name": HOSTILE, "digest": "77" * 32})
    write_results(results_path(run, "hostile", "eval"), hostile, quality(hostile, 0.06, "llama.cpp"))
    reports.build([run])
    return run / "report" / "index.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert DRIVER
    process = subprocess.Popen(
        [DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    session = None
    try:
        for _ in range(150):
            try:
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                    f"http://127.0.0.1:{port}/status", timeout=5
                )
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        session = Browser(port, tmp_path_factory.mktemp("profile"))
        yield session
    finally:
        if session is not None:
            session.call("DELETE", "")
        process.terminate()
        process.wait(20)


@pytest.fixture
def opened(browser: Browser, page: Path) -> Browser:
    browser.open(page)
    return browser


def column(browser: Browser, number: int) -> list[str]:
    script = """return [...document.querySelectorAll('#artifacts tbody tr')].filter(r => !r.hidden)
        .map(r => r.cells[arguments[0]].dataset.sort ?? '')"""
    found: list[str] = browser.run(script, number)
    return found


def test_opens_without_errors_or_requests(browser: Browser, page: Path) -> None:
    browser.logs("browser"), browser.requested()
    browser.open(page)
    browser.click("#theme")
    browser.hover("#plot-size .point")
    assert browser.logs("browser") == []
    assert {url for url in browser.requested() if not url.startswith(("data:", "chrome:"))} == {page.as_uri()}


def test_policy_would_stop_a_request(opened: Browser, page: Path) -> None:
    opened.run("const i = new Image(); i.src = 'http://127.0.0.1:9/x.png'; document.body.append(i)")
    time.sleep(0.3)
    assert any("Content Security Policy" in entry["message"] for entry in opened.logs("browser"))


def test_names_are_text(opened: Browser) -> None:
    assert opened.run("return window.owned === undefined")
    assert opened.run("return document.querySelectorAll('script:not([type])').length") == 1
    shown = opened.run(
        "return [...document.querySelectorAll('#artifacts .name')].map(n => n.textContent.trim())"
    )
    assert HOSTILE in shown
    opened.run("document.querySelector(`.point[aria-label^='<script>']`).focus()")
    assert opened.run("return document.querySelector('#tip b').textContent") == HOSTILE
    assert opened.run("return window.owned === undefined")


def test_sorts_by_any_column_with_missing_values_last(opened: Browser) -> None:
    count = opened.run("return document.querySelectorAll('#artifacts thead th').length")
    kl = next(
        i
        for i in range(count)
        if "KL"
        in opened.run("return document.querySelectorAll('#artifacts thead th')[arguments[0]].textContent", i)
    )
    opened.click(f"#artifacts thead th:nth-child({kl + 1}) button")
    up = column(opened, kl)
    known = [float(v) for v in up if v]
    assert known == sorted(known)
    assert up[len(known) :] == [""] * (len(up) - len(known))
    assert "" in up
    opened.click(f"#artifacts thead th:nth-child({kl + 1}) button")
    assert [float(v) for v in column(opened, kl) if v] == known[::-1]
    assert (
        opened.run(
            "return document.querySelectorAll('#artifacts th')[arguments[0]].getAttribute('aria-sort')", kl
        )
        == "descending"
    )
    opened.click("#artifacts thead th:first-child button")
    names = column(opened, 0)
    assert len(names) == len(up)
    assert names.index("awq-int4") < names.index("bnb-int8") < names.index("quanto-int8")


def test_filters_table_and_plots(opened: Browser) -> None:
    everything = len(column(opened, 0))
    opened.type("#filter", "gguf q8")
    assert column(opened, 0) == ["gguf-q8_0"]
    assert opened.run("return document.querySelector('#count').textContent") == f"1 of {everything} shown"
    visible = """return [...document.querySelectorAll('#plot-size .point')].filter(p => p.style.display !== 'none')
        .map(p => p.getAttribute('aria-label').split(';')[0])"""
    assert opened.run(visible) == ["gguf-q8_0"]
    opened.run(
        "const f = document.querySelector('#filter'); f.value = ''; f.dispatchEvent(new Event('input'))"
    )
    opened.click("input[name=family][value=GGUF]")
    assert not any(name.startswith("gguf") for name in column(opened, 0))
    opened.click("input[name=family][value=GGUF]")
    opened.click("#only-front")
    assert 0 < len(column(opened, 0)) < everything
    opened.click("#only-front")
    assert len(column(opened, 0)) == everything


def test_hover_shows_what_the_point_is(opened: Browser) -> None:
    label = opened.run(
        "return document.querySelector('#plot-speed .point').getAttribute('aria-label').split(';')[0]"
    )
    opened.hover("#plot-speed .point")
    tip = opened.run("const t = document.querySelector('#tip'); return t.hidden ? '' : t.innerText")
    assert tip.startswith(label)
    assert "KL divergence" in tip
    lit = opened.run("return document.querySelector('tr.lit th').dataset.sort")
    assert lit == label
    opened.hover("h1")
    assert opened.run("return document.querySelector('#tip').hidden")
    assert opened.run("return document.querySelectorAll('.dim').length") == 0


def test_keyboard_walks_the_points(opened: Browser) -> None:
    assert opened.run("return document.querySelectorAll('#plot-size .point[tabindex=\"0\"]').length") == 1
    opened.run("document.querySelector('#plot-size .point[tabindex=\"0\"]').focus()")
    seen = set()
    for _ in range(len(RECIPES) + 1):
        seen.add(opened.run("return document.activeElement.getAttribute('aria-label')"))
        opened.press(RIGHT)
    assert len(seen) == len(RECIPES) + 1
    assert opened.run("return document.querySelectorAll('#plot-size .point[tabindex=\"0\"]').length") == 1


def test_theme_switch(opened: Browser) -> None:
    background = "return getComputedStyle(document.body).backgroundColor"
    first = opened.run(background)
    opened.click("#theme")
    second = opened.run(background)
    assert first != second
    opened.click("#theme")
    assert opened.run(background) == first


def test_the_answer_follows_the_limits(opened: Browser) -> None:
    pick = "return document.querySelector('.pick').textContent.trim()"
    assert opened.run(pick) == "gguf-q5_k_m"
    opened.type(".chooser input[name=loss]", "2")
    assert opened.run(pick) == "gguf-q4_k_m"
    assert opened.run("return document.querySelector('tr.picked th').dataset.sort") == "gguf-q4_k_m"
    opened.type(".chooser input[name=tg]", "100000")
    assert opened.run(pick) == "none of these"
    assert "comes nearest" in opened.run("return document.querySelector('.why').textContent")


@pytest.mark.parametrize("width", [1280, 480])
def test_nothing_overflows_and_labels_do_not_collide(opened: Browser, width: int) -> None:
    opened.call("POST", "/window/rect", {"width": width, "height": 1000})
    try:
        assert opened.run("return document.documentElement.scrollWidth <= innerWidth"), (
            "the page scrolls sideways"
        )
        script = """
            const out = [];
            for (const svg of document.querySelectorAll('svg.scatter')) {
              const labels = [...svg.querySelectorAll('.label')], frame = svg.getBoundingClientRect();
              const boxes = labels.map(l => [l.textContent, l.getBoundingClientRect()]);
              boxes.forEach(([name, a], i) => {
                if (a.right > frame.right + 1 || a.left < frame.left - 1) out.push(name + ' leaves ' + svg.id);
                boxes.slice(i + 1).forEach(([other, b]) => {
                  const w = Math.min(a.right, b.right) - Math.max(a.left, b.left);
                  const h = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
                  if (w > 2 && h > 4) out.push(name + ' covers ' + other + ' in ' + svg.id);
                });
              });
            }
            return out;"""
        assert opened.run(script) == []
    finally:
        opened.call("POST", "/window/rect", {"width": 1280, "height": 1000})


def test_every_control_has_a_name(opened: Browser) -> None:
    script = """
        const named = e => e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length || e.title;
        return [...document.querySelectorAll('button, input, a[href], [role=img], [role=region]')]
            .filter(e => !named(e)).map(e => e.outerHTML)"""
    assert opened.run(script) == []
    assert opened.run("return document.documentElement.lang") == "en"
    levels = opened.run("return [...document.querySelectorAll('h1, h2, h3')].map(h => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))


def test_prints_unfolded_and_light(opened: Browser) -> None:
    opened.run("document.documentElement.dataset.theme = 'dark'; dispatchEvent(new Event('beforeprint'))")
    assert opened.run("return [...document.querySelectorAll('details')].every(d => d.open)")
    opened.call(
        "POST", "/goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {"media": "print"}}
    )
    try:
        assert opened.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert opened.run("return getComputedStyle(document.querySelector('.tools')).display") == "none"
    finally:
        opened.call(
            "POST", "/goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {"media": ""}}
        )
    opened.run("dispatchEvent(new Event('afterprint'))")
    assert not opened.run("return [...document.querySelectorAll('details')].every(d => d.open)")
