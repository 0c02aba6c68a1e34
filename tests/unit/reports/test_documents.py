"""The written report: JSON against its schema, CSV, Markdown, and a page that escapes whatever it is
given."""

import csv
import html.parser
import io
import itertools
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner
from sample_run import MODEL, RECIPES, quality, subject, write_run

import reports
from quantize.errors import BadInput
from quantize.results import EvalResult, Subject, results_path, write_results
from quantize.units import spell_size
from reports.charts import log_text, tick_text
from reports.command import report as command
from reports.compare import compare
from reports.format import change, interval, number, significant
from reports.generations import side_by_side
from reports.load import load
from reports.markdown import code, escape
from reports.svg import linear_ticks, log_ticks

HOSTILE = "<script>alert(1)</script>\"'|`&<img src=x onerror=alert(2)>"
#: what Markdown would make a heading, a list, a rule, a link, an image, HTML or code of
MARKUP = (
    "# one\n\n# two\n- three\n\n---\n```\n<b>x</b> [a](javascript:b) ![c](https://d.example/e) "
    "https://f.example\x1b[31m"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("run"))
    reports.build([run])
    return run / "report"


def test_engines_stand_side_by_side_where_there_are_several(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    reports.build([run])
    assert "### Engines" not in (run / "report" / "report.md").read_text(encoding="utf-8")
    for count, recipe in enumerate(("gptq-int4", "awq-int4")):
        known = subject(recipe, engine=f"engine{count} 1.0", made_s=12.0 + count, made_peak_bytes=10**9)
        write_results(results_path(run, known.name, "convert"), known, [])
    reports.build([run])
    markdown = (run / "report" / "report.md").read_text(encoding="utf-8")
    lines = markdown.partition("### Engines")[2].splitlines()
    kl = next(line.split("|") for line in lines if "`gptq-int4`" in line)
    assert [cell.strip() for cell in (kl[2], *kl[5:7])] == ["engine0 1.0", "12", spell_size(10**9)]
    assert "(" in kl[3]  # the interval
    assert "(" in kl[4]
    page = Page((run / "report" / "index.html").read_text(encoding="utf-8"))
    assert page.unbalanced == []
    assert {"engine0 1.0", "engine1 1.0"} <= set(page.words)
    rows = {row["recipe"]: row for row in json.loads((run / "report" / "report.json").read_text())["rows"]}
    assert (rows["awq-int4"]["engine"], rows["awq-int4"]["made_s"]) == ("engine1 1.0", 13.0)


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_build_returns_the_contract(tmp_path: Path) -> None:
    run = write_run(tmp_path, {"gguf-q4_k_m": RECIPES["gguf-q4_k_m"]})
    document = reports.build([run])
    assert Path(document["report"]).is_file()
    row = next(row for row in document["rows"] if row["recipe"] == "gguf-q4_k_m")
    for key in (
        "status", "verified", "size_bytes", "bits_per_weight", "perplexity", "kl_mean", "top1_agreement",
        "task_accuracy",
        "pp_tokens_per_s", "tg_tokens_per_s", "peak_memory_bytes",
    ):  # fmt: skip
        assert row[key] not in (None, ""), key
    assert row["status"] == "ok"
    assert (
        row["uncertainty"]["kl_mean"]["interval"][0]
        < row["kl_mean"]
        < row["uncertainty"]["kl_mean"]["interval"][1]
    )
    failed = next(row for row in document["rows"] if row["recipe"] == "gptq-int2")
    assert (failed["status"], failed["perplexity"]) == ("failed", None)
    assert "memory" in failed["reason"]
    assert not list(run.glob(".*"))


def test_json_matches_its_schema(built: Path) -> None:
    schema = json.loads((built / "report.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    document = json.loads((built / "report.json").read_text())
    jsonschema.validate(document, schema)
    broken = {**document, "rows": [{**document["rows"][0], "status": "fine"}]}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema)


def test_csv_has_the_json_s_numbers(built: Path) -> None:
    rows = {row["recipe"]: row for row in csv.DictReader(io.StringIO((built / "results.csv").read_text()))}
    for row in json.loads((built / "report.json").read_text())["rows"]:
        line = rows[row["recipe"]]
        assert line["kl_mean"] == ("" if row["kl_mean"] is None else str(row["kl_mean"]))
        if row["kl_mean"] is not None:
            assert float(line["kl_mean_low"]) < row["kl_mean"] < float(line["kl_mean_high"])


def test_a_name_is_no_formula(tmp_path: Path) -> None:
    s = replace(subject("gguf-q8_0"), name="=HYPERLINK(1)", recipe="=1+1")
    write_results(
        results_path(tmp_path, "x", "eval"),
        s,
        [replace(r, environment={}) for r in quality(s, 0.01, "llama.cpp")],
    )
    reports.build([tmp_path])
    (line,) = csv.DictReader(io.StringIO((tmp_path / "report" / "results.csv").read_text()))
    assert (line["artifact"], line["recipe"]) == ("'=HYPERLINK(1)", "'=1+1")


def test_page_is_whole_and_asks_for_nothing(built: Path) -> None:
    text = (built / "index.html").read_text()
    page = Page(text)
    assert page.unbalanced == []
    assert page.open == []
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, name, value)
    assert "url(" not in text
    assert "@import" not in text
    assert not re.findall(r"https?://(?!www\.w3\.org)", text)
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(ids) == len(set(ids)), "an id stands twice"
    for tag, attributes in page.tags:
        if tag == "a" and attributes["href"] != "#":
            assert (attributes["href"] or "")[1:] in ids
        for name in ("aria-labelledby",):
            if attributes.get(name):
                assert attributes[name] in ids


def test_page_answers_first_and_names_failures(built: Path) -> None:
    words = " ".join("".join(Page((built / "index.html").read_text()).words).split())
    words = words.partition("Reproduce Theme")[2]  # after the navigation
    assert words.index("gguf-q5_k_m") < words.index("Trade-offs") < words.index("All artifacts")
    assert "killed by signal 9 (out of memory)" in words
    assert "width 640 is not a multiple of 256" in words
    assert "llamacpp-512" in words


@pytest.mark.parametrize(
    "where", ["model", "name", "recipe", "reason", "note", "environment", "task", "backend", "generation"]
)
def test_everything_is_escaped(where: str, tmp_path: Path) -> None:
    model = HOSTILE if where == "model" else MODEL
    source = Subject(
        name=model, recipe="bfloat16", model=model, digest="ef" * 32, size_bytes=10, role="reference"
    )
    note = {"tensor": "t", "what": "w", "why": HOSTILE if where == "note" else "y"}
    s = replace(
        subject("gguf-q8_0"), model=model, notes=(note,), name=HOSTILE if where == "name" else "a",
        recipe=HOSTILE if where == "recipe" else "gguf-q8_0", status="failed" if where == "reason" else "ok",
        reason=HOSTILE if where == "reason" else "",
    )  # fmt: skip
    extra = {"cpu": HOSTILE} if where == "environment" else {}
    backend = HOSTILE if where == "backend" else "llama.cpp"
    rows = [
        replace(r, environment={**r.environment, **extra, "reference": model})
        for r in quality(s, 0.01, backend)
    ]
    rows.append(
        replace(
            rows[0],
            metric="accuracy",
            task=HOSTILE if where == "task" else "t",
            samples=(1.0, 0.0),
            value=0.5,
        )
    )
    continuation = HOSTILE if where == "generation" else "text"
    for owner, target in ((s, rows),):
        items = [{"prompt": "p" + continuation, "text": continuation}]
        target.append(EvalResult(owner.name, "generations", "greedy", None, detail={"items": items}))
    reference = quality(source, 0, "transformers", "reference")
    items = [{"prompt": "p" + continuation, "text": "other"}]
    reference.append(
        EvalResult(source.name, "generations", "greedy", None, role="reference", detail={"items": items})
    )
    write_results(results_path(tmp_path, "s", "eval"), source, reference)
    write_results(results_path(tmp_path, "a", "eval"), s, rows)
    reports.build([tmp_path])
    text = (tmp_path / "report" / "index.html").read_text()
    page = Page(text)
    assert page.unbalanced == []
    assert page.open == []
    assert [a for t, a in page.tags if t == "img"] == []
    scripts = [a for t, a in page.tags if t == "script"]
    assert [a.get("type") for a in scripts] == ["application/json"] * (len(scripts) - 1) + [None]
    assert not [name for _, a in page.tags for name in a if name.startswith("on")]
    assert "alert(1)" in text
    markdown = (tmp_path / "report" / "report.md").read_text()
    outside = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", re.sub(r"```sh.*?```", "", markdown, flags=re.S))
    assert "<script" not in outside
    assert "<img" not in outside
    for svg in (tmp_path / "report" / "plots").glob("*.svg"):
        import xml.etree.ElementTree as ET

        found = {element.tag.rpartition("}")[2] for element in ET.parse(svg).iter()}
        assert "script" not in found
        assert "img" not in found


def test_markdown_tables_are_rectangular(built: Path) -> None:
    text = (built / "report.md").read_text()
    blocks = re.findall(r"(?:^\|.*\n)+", text, flags=re.M)
    assert len(blocks) >= 2
    for block in blocks:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1
    for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert (built / link).is_file()


@pytest.mark.parametrize(
    "where",
    ["model", "name", "recipe", "reason", "note", "protocol", "ids", "backend", "task", "verified", "text"],
)
def test_markdown_of_strangers_stays_text(where: str, tmp_path: Path) -> None:
    from markdown_it import MarkdownIt

    def hostile(key: str, otherwise: str) -> str:
        return MARKUP if where == key else otherwise

    failed = where == "reason"
    s = subject(
        hostile("recipe", "gguf-q8_0"), model=hostile("model", MODEL), name=hostile("name", "a"),
        verified=hostile("verified", "full"), status="failed" if failed else "ok",
        reason=MARKUP if failed else "", size_bytes=10,
        notes=({"tensor": hostile("note", "t"), "what": hostile("note", "w"), "why": hostile("note", "y")},),
    )  # fmt: skip
    rows = [
        replace(
            r,
            protocol=hostile("protocol", "p"),
            ids=hostile("ids", "source"),
            environment={"text": hostile("text", "t")},
        )
        for r in quality(s, 0.01, hostile("backend", "llama.cpp"))
    ]
    rows.append(replace(rows[0], metric="accuracy", task=hostile("task", "t"), samples=(1.0, 0.0), value=0.5))
    write_results(results_path(tmp_path, "a", "eval"), s, rows)
    reports.build([tmp_path])
    text = (tmp_path / "report" / "report.md").read_text()
    assert "\x1b" not in text
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    inline = [child for token in tokens for child in token.children or ()]
    assert not [t for t in (*tokens, *inline) if t.type.startswith("html") or t.type in ("link_open", "hr")]
    assert all(str(t.attrs["src"]).startswith("plots/") for t in inline if t.type == "image")
    blocks = [after.content for token, after in itertools.pairwise(tokens) if token.type.endswith("_open")]
    assert not [words for words in blocks if re.fullmatch("one|two|three", words)]
    fences = [t.content for t in tokens if t.type == "fence"]
    assert all(line.startswith("quantwright ") for fence in fences for line in fence.splitlines())
    assert "https://f.example" not in re.sub(
        r"(`+)(?!`).+?(?<!`)\1(?!`)", "", re.sub(r"```sh.*?\n```\n", "", text, flags=re.S)
    )


def test_no_secret_and_no_control_character_gets_into_a_report(tmp_path: Path) -> None:
    token, escape_code = "hf_" + "a" * 34, "\x1b[31m\u202e"
    s = subject(
        "gguf-q8_0",
        name=f"a{escape_code}",
        reason=f"https://me:{token}@example.org failed {token}",
        status="failed",
    )
    rows = [
        replace(r, environment={**r.environment, "from": f"{token}{escape_code}"})
        for r in quality(s, 0.01, "llama.cpp")
    ]
    write_results(results_path(tmp_path, "a", "eval"), s, rows)
    reports.build([tmp_path])
    for path in (tmp_path / "report").rglob("*"):
        if path.suffix in (".html", ".md", ".csv", ".json", ".svg"):
            text = path.read_text()
            for secret in (token, "\x1b", "\u202e", "\\u001b"):
                assert secret not in text, path.name


def test_cells_that_a_spreadsheet_would_compute(tmp_path: Path) -> None:
    for index, formula in enumerate(("=1+1", " =1+1", "+1", "-1+1", "@a", "\t=1", "\n=1", "＝1")):
        s = subject("gguf-q8_0", name=f"a{index}", digest=str(index), reason=formula, status="failed")
        write_results(results_path(tmp_path, s.name, "eval"), s, quality(s, 0.01, "llama.cpp"))
    reports.build([tmp_path])
    rows = list(csv.DictReader(io.StringIO((tmp_path / "report" / "results.csv").read_text())))
    assert len(rows) == 8
    for row in rows:
        assert row["reason"].startswith("'")


def test_the_command_names_tasks_as_they_were_typed(tmp_path: Path) -> None:
    s = subject("gguf-q8_0")
    rows = quality(s, 0.01, "llama.cpp")
    for name, typed in (
        ("two", "tasks/two.yaml"),
        ("piqa", "piqa=my data"),
        ("arc_easy", ""),
        ("one", "tasks/two.yaml"),
    ):
        detail = {"typed": typed} if typed else {}
        rows.append(
            replace(rows[0], metric="accuracy", task=name, samples=(1.0, 0.0), value=0.5, detail=detail)
        )
    write_results(results_path(tmp_path, s.name, "eval"), s, rows)
    reports.build([tmp_path])
    text = (tmp_path / "report" / "report.md").read_text()
    assert "--tasks 'tasks/two.yaml,piqa=my data,arc_easy'" in text


def test_code_spans_hold_anything() -> None:
    assert code("a`b") == "``a`b``"
    assert code("`x") == "`` `x ``"
    assert code("a|b") == "`a\\|b`"
    assert escape("<b>*x*|") == "&lt;b&gt;\\*x\\*\\|"


def test_nothing_measured_is_still_a_report(tmp_path: Path) -> None:
    failed = Subject("a/x", "gptq-int4", "m", status="failed", reason="no")
    write_results(results_path(tmp_path, "x", "convert"), failed, [])
    document = reports.build([tmp_path])
    assert [row["status"] for row in document["rows"]] == ["failed"]
    assert "Nothing to recommend" in (tmp_path / "report" / "index.html").read_text()


@pytest.mark.parametrize("case", ["file", "foreign"])
def test_output_that_is_not_a_report_is_left_alone(case: str, built: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if case == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "thesis.tex").write_text("mine")
    with pytest.raises(BadInput):
        reports.build([built.parent], out)
    assert (out if case == "file" else out / "thesis.tex").read_text() == "mine"
    reports.build([built.parent], tmp_path / "new")
    reports.build([built.parent], tmp_path / "new")  # a report may be written again


def test_same_run_same_bytes(built: Path, tmp_path: Path) -> None:
    reports.build([built.parent], tmp_path / "again")
    for path in built.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(built)).read_bytes(), path.name


def test_command_prints_the_table_and_json(built: Path, tmp_path: Path) -> None:
    args = [str(built.parent), "-o", str(tmp_path / "r")]
    shown = CliRunner().invoke(command, args, standalone_mode=False)
    assert "gguf-q5_k_m" in shown.stdout
    assert str(tmp_path / "r" / "index.html") in shown.stdout
    result = CliRunner().invoke(
        command, [*args, "--json", "--since", str(built.parent)], standalone_mode=False
    )
    document = json.loads(result.stdout.splitlines()[-1])
    assert set(document) == {"report", "rows", "changes"}
    assert document["changes"] == []


def test_png_files_where_matplotlib_is(built: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    reports.build([built.parent], tmp_path / "r", png=True)
    files = list((tmp_path / "r" / "plots").glob("*.png"))
    assert {file.stem for file in files} == {"size", "speed", "prefill", "memory"}
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


def test_without_matplotlib_the_page_says_so(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    reports.build([built.parent], tmp_path / "r", png=True)
    assert not list((tmp_path / "r" / "plots").glob("*.png"))
    assert "matplotlib is not installed" in (tmp_path / "r" / "index.html").read_text()


def test_a_hundred_results(tmp_path: Path) -> None:
    recipes = {}
    for index in range(98):
        name, (bits, kl, decode, backend, loads) = list(RECIPES.items())[index % 9]
        recipes[f"{name.partition('-')[0]}:v={index}"] = (
            bits + index / 50,
            kl * (1 + index / 40),
            decode + index,
            backend,
            loads,
        )
    RECIPES.update(recipes)
    try:
        write_run(tmp_path, recipes)
    finally:
        for name in recipes:
            del RECIPES[name]
    document = reports.build([tmp_path])
    assert len(document["rows"]) == 102


def test_side_by_side_marks_the_first_departure(tmp_path: Path) -> None:
    run = write_run(tmp_path, {"gguf-q8_0": RECIPES["gguf-q8_0"]}, tasks=())
    for entry in load([run]):
        if entry.subject.role == "reference" or entry.subject.recipe == "gguf-q8_0":
            text = "the cat sat" if entry.subject.role else "the dog sat"
            ids = [1, 2, 3] if entry.subject.role else [1, 9, 3]
            item = {"prompt": "Once,", "text": text, "ids": ids}
            result = EvalResult(entry.subject.name, "generations", "greedy-3", None, detail={"items": [item]})
            longer = replace(
                result, protocol="greedy-9", detail={"items": [{**item, "text": "the same", "ids": [1, 5]}]}
            )
            write_results(
                run / "results" / f"g{entry.subject.role}.eval.json",
                entry.subject,
                [*entry.results, result, longer],
            )
    reports.build([run])
    page = Page((run / "report" / "index.html").read_text())
    assert "dog sat" in page.words
    assert "the " in page.words
    assert any("1 tokens equal" in words for words in page.words)
    found = side_by_side(next(iter(compare(load([run])).groups)))
    assert [prompt.reference for prompt in found] == ["the cat sat", "the same"]
    assert [[one.identical for one in prompt.continuations] for prompt in found] == [[False], [True]]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (significant(0.00123456, 3), "0.00123"), (significant(1234.5, 4), "1,234"), (significant(2.4e-9, 3),
        "2.40e-09"),
        (significant(-0.5, 2), "−0.50"), (spell_size(999), "999 B"), (spell_size(1500), "1.50 kB"),
        (spell_size(5.02e8), "502.0 MB"),
        (spell_size(3.2e12), "3.20 TB"), (change(-0.00001), "0.00 %"), (change(0.0123), "+1.23 %"),
        (number("kl_mean", None), "–"),
        (number("top1_agreement", 0.98765), "98.77 %"), (interval("top1_agreement", (0.98, 0.99)),
        "98.00 to 99.00 %"),
        (tick_text("size_bytes", 3e6), "3 MB"), (log_text(3e-6), "3·10⁻⁶"), (log_text(0.003), "0.003"),
        (log_text(1e-5), "10⁻⁵"),
    ],
)  # fmt: skip
def test_written_numbers(shown: str, expected: str) -> None:
    assert shown == expected


def test_ticks_and_labels() -> None:
    assert linear_ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert log_ticks(0.001, 1) == [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1]


def test_comparison_knows_both_runs_of_a_merge(built: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path, {"gguf-q8_0": RECIPES["gguf-q8_0"]}, tasks=())
    (group,) = compare(load([built.parent, other])).groups
    assert len(group.measured) == len(RECIPES)
