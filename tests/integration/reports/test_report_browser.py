"""The page in a real browser."""

import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from browser import Browser, chromium, needs_browser
from sample_run import RECIPES, quality, subject, write_run

import reports
from quantize.results import results_path, write_results

pytestmark = [
    pytest.mark.long,  # a browser on a busy machine answers late
    needs_browser,
]

HOSTILE = "<script>window.owned=1</script>"
ENTER, RIGHT = "\ue007", "\ue014"


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
    with chromium(tmp_path_factory.mktemp("profile")) as session:
        yield session


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
