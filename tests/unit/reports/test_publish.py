"""Model cards and repositories, from small artifacts committed the way convert commits them."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData
from sample_artifact import make_artifact
from sample_run import quality, speed, subject, task, write_run

from quantize.artifact.artifact import (
    Artifact,
    CalibrationRecord,
    Check,
    Note,
    Verification,
    hash_files,
)
from quantize.errors import BadInput
from quantize.results import results_path, write_results
from reports.card import CardOptions
from reports.publish import prepare, write_repository


def run_for(folder: Path, artifacts: list[Artifact]) -> Path:
    run = write_run(folder, {})
    for artifact in artifacts:
        s = replace(
            subject("gguf-q4_k_m"),
            name=str(artifact.folder),
            recipe=artifact.manifest.recipe_short,
            digest=artifact.digest,
        )
        rows = [
            *quality(s, 0.013, "llama.cpp"),
            *task(s, "held-out-choice", 0.6),
            *speed(s, 100, "llama.cpp"),
        ]
        write_results(results_path(run, s.name, "eval"), s, rows)
    return run


def card_of(folder: Path) -> ModelCard:
    return ModelCard.load(folder / "README.md")


def test_card_round_trips_and_says_what_was_measured(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "q4")
    run = run_for(tmp_path / "run", [artifact])
    said: list[str] = []
    repository = prepare([artifact.folder], [run], CardOptions("me/small-GGUF"), say=said.append)
    write_repository(repository, tmp_path / "out")
    card = card_of(tmp_path / "out")
    data = card.data.to_dict()
    assert data["base_model"] == "org/small"
    assert data["base_model_relation"] == "quantized"
    assert data["quantized_by"] == "me"
    assert data["license"] == "apache-2.0"
    assert data["library_name"] == "gguf"
    assert data["pipeline_tag"] == "text-generation"
    assert {"gguf", "quantized", "4-bit"} <= set(data["tags"])
    again = ModelCard(str(card))
    assert again.data.to_dict() == data
    assert ModelCardData(**data).to_dict() == data
    results = {(r.dataset_name, r.metric_type): r.metric_value for r in card.data.eval_results}
    expected = next(
        r for r in quality(subject("gguf-q4_k_m"), 0.013, "llama.cpp") if r.metric == "perplexity"
    ).value
    assert results["held-out.txt", "perplexity"] == pytest.approx(expected, rel=1e-5)
    assert ("held-out-choice", "accuracy") in results
    for words in (artifact.digest, "llamacpp-512", "95 % intervals", "logits 0.001 (tolerance 0.02) passed",
                  "kept as F32",
                  "quantwright convert org/small@abc123 --to gguf-q4_k_m", "&lt;short&gt;",
                  "bfloat16"):  # fmt: skip
        assert words in card.text, words
    entry = next(iter(artifact.manifest.files.values()))
    assert entry.sha256 in card.text
    assert said == []


def test_repository_is_the_artifact(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "gptq", "gptq-int4")
    write_repository(prepare([artifact.folder], [], CardOptions("me/x")), tmp_path / "out")
    written = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert written == {"README.md", "manifest.json", *artifact.manifest.files}
    for name in artifact.manifest.files:
        assert (tmp_path / "out" / name).read_bytes() == (artifact.folder / name).read_bytes()
    assert Artifact.load(tmp_path / "out").digest == artifact.digest  # it is an artifact still
    assert card_of(tmp_path / "out").data.library_name == "transformers"
    assert "have not been measured yet" in card_of(tmp_path / "out").text


def test_terms_languages_and_tags_of_the_source(tmp_path: Path) -> None:
    base = make_artifact(tmp_path / "tmp").manifest.source
    source = base.model_copy(
        update={"license": "other", "license_name": "acme-1.0", "license_link": "LICENSE", "languages": ("de",
        "no"),
                "tags": ("chat", "Safetensors", "a\n---\nb")}
    )  # fmt: skip
    artifact = make_artifact(tmp_path / "q4", source=source)
    said: list[str] = []
    data = ModelCard(card_bytes(artifact, CardOptions("me/x"), said)).data.to_dict()
    assert (data["license"], data["license_name"], data["language"]) == ("other", "acme-1.0", ["de", "no"])
    # the file is not among the artifact's
    assert data["license_link"] == "https://huggingface.co/org/small/blob/abc123/LICENSE"
    assert {"chat", "a --- b"} < set(data["tags"])
    assert "Safetensors" not in data["tags"]
    assert said == ["no --results: the model card will show no measured numbers"]
    given = CardOptions(
        "me/x", license="other", license_name="mine", license_link="https://example.org/terms"
    )
    data = ModelCard(card_bytes(artifact, given, said)).data.to_dict()
    assert (data["license_name"], data["license_link"]) == ("mine", "https://example.org/terms")
    card_bytes(
        make_artifact(tmp_path / "b", source=base.model_copy(update={"license": "other"})),
        CardOptions("me/x"),
        said,
    )
    assert any("--license-name" in words for words in said)
    several = make_artifact(tmp_path / "c", source=base.model_copy(update={"license": "mit,apache-2.0"}))
    assert ModelCard(card_bytes(several, CardOptions("me/x"), said)).data.to_dict()["license"] == [
        "mit",
        "apache-2.0",
    ]


def card_bytes(artifact: Artifact, options: CardOptions, said: list[str]) -> str:
    return prepare([artifact.folder], [], options, say=said.append).files["README.md"].decode()  # type: ignore[union-attr]


def test_what_the_source_is_called(tmp_path: Path) -> None:
    """Only a source on the Hub has a revision; in a folder's name an @ is a letter like any other."""
    base = make_artifact(tmp_path / "tmp").manifest.source
    for number, (given, revision, name, hub) in enumerate([
        ("/home/me/my@model", None, "my@model", None), ("models/small", None, "small", None),
        ("org/small@v1", "abc123", "org/small", "org/small"), ("org/small+adapter", "abc123", "org/small",
        "org/small"),
        ("modelscope:org/small@v1", "abc123", "small", None),
    ]):  # fmt: skip
        artifact = make_artifact(
            tmp_path / str(number), source=base.model_copy(update={"id": given, "revision": revision})
        )
        card = ModelCard(card_bytes(artifact, CardOptions("me/x"), []))
        assert card.data.to_dict().get("base_model") == hub
        assert f"Source: `{name}`" in card.text
        assert "/home/me" not in card.text


def test_quanto_is_loaded_by_its_own_library(tmp_path: Path) -> None:
    card = ModelCard(card_bytes(make_artifact(tmp_path / "a", "quanto-int4"), CardOptions("me/x"), []))
    assert card.data.library_name == "optimum-quanto"
    assert "QuantizedModelForCausalLM.from_pretrained('me/x')" in card.text
    assert "pip install optimum-quanto" in card.text


def test_a_model_that_also_sees_is_loaded_whole(tmp_path: Path) -> None:
    base = make_artifact(tmp_path / "tmp").manifest.source
    source = base.model_copy(update={"architecture": "Qwen3VLForConditionalGeneration"})
    quanto = make_artifact(tmp_path / "a", "quanto-int8", source=source)
    text = ModelCard(card_bytes(quanto, CardOptions("me/x"), [])).text
    code = text.partition("```python\n")[2].partition("```")[0]
    compile(code, "card", "exec")
    assert "class Whole(QuantizedTransformersModel):\n    auto_class = AutoModelForImageTextToText\n" in code
    assert "Whole.from_pretrained('me/x')" in code
    dense = make_artifact(tmp_path / "b", "bnb-nf4", source=source)
    text = ModelCard(card_bytes(dense, CardOptions("me/x"), [])).text
    assert "AutoModelForImageTextToText.from_pretrained('me/x')" in text


def test_a_card_of_strangers_strings_stays_text(tmp_path: Path) -> None:
    from markdown_it import MarkdownIt

    hostile = "# one\n\n# two\n```\n<b>x</b> [a](javascript:b) ![c](d) `` https://f.example\x1b[31m"
    base = make_artifact(tmp_path / "tmp").manifest
    artifact = make_artifact(
        tmp_path / "q4", recipe_short=hostile, engine=hostile, libraries={hostile: hostile},
        loads_in=(hostile,), runtime=hostile,
        tool={"name": hostile, "version": hostile}, notes=(Note(tensor=hostile, what=hostile, why=hostile),),
        source=base.source.model_copy(update={"id": hostile, "revision": None, "digest": hostile,
        "dtype": hostile,
                                              "license": hostile, "license_name": hostile, "tags": (hostile,
                                              )}),
        calibration=CalibrationRecord(source=hostile, sha256=hostile, ids_sha256="0", tokens=1,
        sequence_length=1, seed=0),
        verification=Verification(level="full", runtime=hostile, reader=hostile,
                                  checks=(Check(name=hostile, passed=True, detail=hostile),)),
    )  # fmt: skip
    text = card_bytes(artifact, CardOptions("me/x"), [])
    assert "\x1b" not in text
    card = ModelCard(text)
    tokens = MarkdownIt("commonmark").enable("table").parse(card.content.split("\n---\n", 1)[1])
    inline = [child for token in tokens for child in token.children or ()]
    assert not [t for t in (*tokens, *inline) if t.type.startswith("html") or t.type in ("image", "hr")]
    links = [t.attrs["href"] for t in inline if t.type == "link_open"]
    assert all(str(link).startswith("https://huggingface.co/") for link in links)
    headings = {after.content for token, after in itertools.pairwise(tokens) if token.type == "heading_open"}
    assert headings == {
        "x",
        "Files",
        "Measured",
        "Use",
        "Check it",
        "How it was made and checked",
        "Fallbacks and notes",
        "Reproduce",
    }
    assert len([t for t in tokens if t.type == "fence"]) == 4


def test_several_gguf_share_a_repository(tmp_path: Path) -> None:
    made = [make_artifact(tmp_path / r, r) for r in ("gguf-q4_k_m", "gguf-q8_0")]
    run = run_for(tmp_path / "run", made)
    write_repository(prepare([a.folder for a in made], [run], CardOptions("me/small-GGUF")), tmp_path / "out")
    written = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert written == {
        "README.md",
        "small-Q4_K_M.gguf",
        "small-Q8_0.gguf",
        "size-quality.png",
        "manifests/gguf-q4_k_m.json",
        "manifests/gguf-q8_0.json",
    }
    card = card_of(tmp_path / "out")
    assert len([r for r in card.data.eval_results if r.metric_type == "perplexity"]) == 2
    assert card.text.count("| `gguf-q8_0` |") >= 2


def test_same_file_name_in_two_artifacts(tmp_path: Path) -> None:
    first, second = make_artifact(tmp_path / "a"), make_artifact(tmp_path / "b", "gguf-q8_0")
    (second.folder / "small-Q8_0.gguf").rename(second.folder / "small-Q4_K_M.gguf")
    manifest = second.manifest.model_copy(update={"files": hash_files(second.folder)})
    (second.folder / "manifest.json").write_text(manifest.model_dump_json())
    repository = prepare([first.folder, second.folder], [], CardOptions("me/x"))
    assert {"small-Q4_K_M.gguf", "small-Q4_K_M-gguf-q8_0.gguf"} <= set(repository.files)
    assert "small-Q4_K_M-gguf-q8_0.gguf" in repository.files["README.md"].decode()  # type: ignore[union-attr]


def test_only_numbers_of_these_bytes_count(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "q4")
    run = run_for(tmp_path / "run", [make_artifact(tmp_path / "other", "gguf-q8_0")])
    said: list[str] = []
    repository = prepare([artifact.folder], [run], CardOptions("me/x"), say=said.append)
    assert "has no numbers for it" in " ".join(said)
    assert b"have not been measured yet" in repository.files["README.md"]  # type: ignore[operator]


def test_nothing_of_this_machine_leaves(tmp_path: Path) -> None:
    source = tmp_path / "home" / "somebody" / "my-model"
    source.mkdir(parents=True)
    text = tmp_path / "home" / "somebody" / "letters.txt"
    text.write_text("x")
    base = make_artifact(tmp_path / "tmp").manifest
    artifact = make_artifact(
        tmp_path / "q4", source=base.source.model_copy(update={"id": str(source), "license": None}),
        calibration=CalibrationRecord(source=str(text), sha256="0" * 64, ids_sha256="0" * 64, tokens=10,
                                      sequence_length=5, seed=0),
        run={"device": "cpu", "scratch": str(tmp_path)},
    )  # fmt: skip
    said: list[str] = []
    write_repository(
        prepare(
            [artifact.folder], [run_for(tmp_path / "run", [artifact])], CardOptions("me/x"), say=said.append
        ),
        tmp_path / "out",
    )
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert b"somebody" not in path.read_bytes(), path.name
            assert str(tmp_path).encode() not in path.read_bytes(), path.name
    data = card_of(tmp_path / "out").data.to_dict()
    assert "license" not in data
    assert "base_model" not in data
    assert any("--license" in words for words in said)
    assert any("--base-model" in words for words in said)
    named = prepare(
        [artifact.folder], [], CardOptions("me/x", base_model="org/base", license="mit", quantized_by="Us")
    )
    card = ModelCard(named.files["README.md"].decode())  # type: ignore[union-attr]
    assert (card.data.base_model, card.data.license, card.data.quantized_by) == ("org/base", "mit", "Us")


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("unverified", "--allow-unverified"), ("failed", "verification failed"), ("changed",
        "does not match its sha256"),
        ("sources", "different sources"), ("folders", "needs its own repository"), ("twice", "listed twice"),
        ("no slash", "user/name"), ("bad id", "--repo"), ("three parts", "--repo"), ("base", "--base-model"),
        ("not one", "manifest.json"),
        ("no run", "no such folder"), ("exists", "already exists"),
    ],
)  # fmt: skip
def test_refusals(case: str, words: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {}
    if case == "unverified":
        changes["verification"] = Verification(level="none")
    if case == "failed":
        changes["verification"] = Verification(level="full", checks=(Check(name="logits", passed=False),))
    artifact = make_artifact(tmp_path / "a", **changes)
    folders = [artifact.folder]
    repo = {"no slash": "small", "bad id": "me/a b", "three parts": "a/b/c"}.get(case, "me/small")
    if case == "changed":
        path = artifact.folder / next(iter(artifact.manifest.files))
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    if case == "sources":
        folders.append(
            make_artifact(
                tmp_path / "b",
                "gguf-q8_0",
                source=artifact.manifest.source.model_copy(update={"digest": "9" * 64}),
            ).folder
        )
    if case == "folders":
        folders.append(make_artifact(tmp_path / "b", "gptq-int4").folder)
    if case == "twice":
        folders.append(folders[0])
    if case == "not one":
        folders = [tmp_path]
    runs = [tmp_path / "absent"] if case == "no run" else []
    if case == "exists":
        (tmp_path / "out").mkdir()
    options = CardOptions(repo, base_model="nonsense id" if case == "base" else None)
    with pytest.raises(BadInput, match=words) as caught:
        write_repository(prepare(folders, runs, options), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert case == "exists" or not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))


def test_unverified_says_so_on_the_card(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "a", verification=Verification(level="none"))
    repository = prepare([artifact.folder], [], CardOptions("me/x"), allow_unverified=True)
    assert b"Not verified." in repository.files["README.md"]  # type: ignore[operator]
    assert json.loads(repository.files["manifest.json"])["verification"]["level"] == "none"  # type: ignore[arg-type]


def test_the_card_has_a_picture_where_there_are_numbers(tmp_path: Path) -> None:
    made = [make_artifact(tmp_path / r, r) for r in ("gguf-q4_k_m", "gguf-q8_0")]
    run = run_for(tmp_path / "run", made)
    repository = prepare([a.folder for a in made], [run], CardOptions("me/small-GGUF"))
    picture = repository.files["size-quality.png"]
    assert isinstance(picture, bytes)
    assert picture.startswith(b"\x89PNG")
    assert repository.commits[-1].add["size-quality.png"] == picture
    card = repository.files["README.md"]
    assert isinstance(card, bytes)
    assert b"(size-quality.png)" in card
    alone = prepare([made[0].folder], [], CardOptions("me/small-GGUF"))
    assert not any(name.startswith("size-quality") for name in alone.files)


def test_a_folder_that_is_called_checkpoint_needs_a_name(tmp_path: Path) -> None:
    base = make_artifact(tmp_path / "tmp").manifest.source
    source = base.model_copy(update={"id": "/home/me/checkpoint", "revision": None})
    artifact = make_artifact(tmp_path / "q4", source=source)
    with pytest.raises(BadInput, match="--name NAME"):
        prepare([artifact.folder], [], CardOptions("me/x"))
    run = run_for(tmp_path / "run", [artifact])
    repository = prepare([artifact.folder], [run], CardOptions("me/x", name="Tiny"))
    assert "Tiny-Q4_K_M.gguf" in repository.files
    write_repository(repository, tmp_path / "out")
    published = Artifact.load(tmp_path / "out")
    published.check_files()
    text = card_of(tmp_path / "out").text
    assert "Tiny-Q4_K_M.gguf" in text
    assert "0.013" in text, "measured under its first name"
    assert f"artifact digest `{published.digest}`" in text
    assert "not checked by the publisher" not in text


def test_llamacpp_is_named_so_that_it_can_be_looked_up(tmp_path: Path) -> None:
    details = {"llama.cpp": {"binding": "llama-cpp-python 0.3.36", "revision": "0c1e570-dirty"}}
    engine = "llama.cpp 0c1e570-dirty (ggml block quantizers)"
    text = ModelCard(
        card_bytes(make_artifact(tmp_path / "a", details=details, engine=engine), CardOptions("me/x"), [])
    ).text
    assert "(https://github.com/ggml-org/llama.cpp/releases/tag/b11312)" in text
    assert "(https://github.com/ggml-org/llama.cpp/commit/0c1e570)" in text
    assert "dirty" not in text
    other = {"llama.cpp": {"binding": "llama-cpp-python 9", "revision": "<b>"}}
    text = ModelCard(card_bytes(make_artifact(tmp_path / "b", details=other), CardOptions("me/x"), [])).text
    assert "engine 1.0" in text
