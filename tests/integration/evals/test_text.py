"""Perplexity of a text: agreement with plain loops and with lm-eval, windows, what is said of the text."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from eval_runs import RUN, by_metric, token_ids

from evals import evaluate
from evals.options import EvalOptions
from quantize.errors import BadInput


def test_perplexity_equals_a_ten_line_loop(checkpoint: Path, text: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    rows = evaluate([checkpoint], text=text, protocol=["llamacpp-128", "gptq-128"], run=RUN)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    ids = torch.tensor(token_ids(checkpoint, text.read_text().removesuffix("\n")))
    halves, wholes = [], []
    for i in range(len(ids) // 128):
        window = ids[i * 128 : (i + 1) * 128]
        with torch.no_grad():
            logits = model(window[None]).logits[0].double()
        loss = torch.nn.functional.cross_entropy(logits[:-1], window[1:], reduction="none")
        halves.append(loss[64:])
        wholes.append(loss)
    for protocol, losses in (("llamacpp-128", halves), ("gptq-128", wholes)):
        row = by_metric(rows, checkpoint, protocol)["perplexity"]
        flat = torch.cat(losses)
        assert row.value == pytest.approx(float(flat.mean().exp()), rel=1e-5)
        assert row.n == len(flat)
        assert row.stderr == pytest.approx(
            float(flat.mean().exp() * flat.std(correction=0) / (len(flat) - 1) ** 0.5), rel=1e-4
        )
        assert row.samples == pytest.approx([float(x.mean()) for x in losses], rel=1e-4)


def test_options_are_keywords_or_one_object(checkpoint: Path, text: Path) -> None:
    keywords = {"text": text, "protocol": "gptq-64", "tokens": 300, "metrics": ["perplexity"]}
    rows = evaluate([checkpoint], run=RUN, **keywords)
    assert evaluate([checkpoint], EvalOptions.of(**keywords), RUN) == rows
    with pytest.raises(BadInput, match="give options or tokens, not both"):
        evaluate([checkpoint], EvalOptions.of(text=text), tokens=300)
    with pytest.raises(BadInput, match=r"no option 'token' \(did you mean tokens\?\)"):
        evaluate([checkpoint], token=300)


def test_lmeval_wikitext_agrees_with_lm_eval(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    from benchmarks.peers.protocols import lm_eval_wikitext
    from evals.wikitext import wikitext_pages

    page = (
        " \n Some text of {0} , with @-@ marks . It has 3 @.@ 5 parts ( {0} ) and goes on .\n \n = = Part = "
        "= \n \n" + " More words , and so on . " * 80
    )
    body = "".join(f" \n = Title {n} = \n {page.format(n)} \n" for n in range(3))
    (tmp_path / "wiki.txt").write_text(body, encoding="utf-8")
    rows = evaluate([checkpoint], text=tmp_path / "wiki.txt", protocol="lmeval-wikitext", run=RUN)
    theirs = lm_eval_wikitext(checkpoint, wikitext_pages(body))
    for metric, row in by_metric(rows, checkpoint, "lmeval-wikitext").items():
        if metric != "perplexity":
            assert row.value == pytest.approx(theirs[metric], rel=1e-5)
    assert len(rows) == 4


def test_the_default_text_is_said_out_loud(checkpoint: Path) -> None:
    said: list[str] = []
    rows = evaluate([checkpoint], tokens=600, protocol="llamacpp-128", run=RUN, say=said.append)
    assert any("held-out text" in line and "sha256" in line for line in said)
    assert "pydoc_data" in rows[0].environment["text"]


def test_calibration_text_is_warned_of(checkpoint: Path, candidate: Path, text: Path, tmp_path: Path) -> None:

    from quantize.artifact.artifact import CalibrationRecord, Manifest, Source, Verification, hash_files

    folder = tmp_path / "artifact"
    shutil.copytree(candidate, folder)
    digest = hashlib.sha256(text.read_text().encode()).hexdigest()
    manifest = Manifest(
        recipe={"method": "dense"}, recipe_short="bfloat16", recipe_digest="0", tool={}, engine="native",
        libraries={},
        source=Source(
            id=str(checkpoint), revision=None, digest="", dtype="BF16", architecture="", model_type="llama",
            parameters=1
        ),
        calibration=CalibrationRecord(source="mine.txt", sha256=digest, ids_sha256="", tokens=1,
        sequence_length=1, seed=0),
        files=hash_files(folder), weight_bytes=1, bits_per_weight=16.0, runtime="transformers",
        loads_in=("transformers",),
        verification=Verification(level="none"),
    )  # fmt: skip
    (folder / "manifest.json").write_text(manifest.model_dump_json(), encoding="utf-8")
    said: list[str] = []
    rows = evaluate(
        [folder],
        metrics=["perplexity", "divergence"],
        text=text,
        tokens=600,
        protocol="gptq-64",
        run=RUN,
        say=said.append,
    )
    assert any("was calibrated on this same text (mine.txt)" in line for line in said)
    assert any(line.startswith(f"reference: {checkpoint}") for line in said)  # the manifest names it
    assert any(row.metric == "kl_mean" for row in rows)


def test_a_longer_window_than_the_context_adapts_out_loud(checkpoint: Path, text: Path) -> None:
    said: list[str] = []
    (row, *_) = evaluate([checkpoint], text=text, tokens=1200, run=RUN, say=said.append)
    assert row.protocol == "llamacpp-256"
    assert any("measuring llamacpp-256 instead" in line for line in said)


def test_numbers_do_not_depend_on_the_block_size(
    checkpoint: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evals import kernels

    settings = {"text": text, "tokens": 800, "protocol": "gptq-100", "run": RUN}
    whole = evaluate([checkpoint], **settings)
    monkeypatch.setattr(kernels, "BLOCK_ELEMENTS", 3 * 4096)
    pieces = evaluate([checkpoint], **settings)
    assert np.array(whole[0].samples) == pytest.approx(np.array(pieces[0].samples), rel=1e-9)
