"""Logits that are not finite: left out, counted, reported."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from eval_runs import RUN, by_metric, token_ids

from evals import evaluate


@pytest.fixture(scope="module")
def broken(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The checkpoint with a NaN in the embedding of one token, that of " return"; and that token."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("broken") / "model"
    shutil.copytree(checkpoint, folder)
    state = load_file(folder / "model.safetensors")
    (token,) = token_ids(checkpoint, " return")[-1:]
    state["model.embed_tokens.weight"][token] = float("nan")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, token


def test_non_finite_tokens_are_left_out_counted_and_reported(
    checkpoint: Path, broken: tuple[Path, int], text: Path, tmp_path: Path
) -> None:
    from reports import build

    folder, token = broken
    ids = np.array(token_ids(checkpoint, text.read_text().removesuffix("\n"))[:4000])
    windows = ids[: len(ids) // 100 * 100].reshape(-1, 100)
    # A window is lost from the first such token on, or as a whole where the attention kernel multiplies what
    # it masks by zero.
    hit = windows == token
    least, most = int(hit[:, :-1].cumsum(1).astype(bool).sum()), 99 * int(hit.any(1).sum())
    assert 0 < least < most < windows.size / 2
    rows = evaluate(
        [folder],
        reference=checkpoint,
        text=text,
        tokens=4000,
        protocol="gptq-100",
        run=RUN,
        out=tmp_path / "run",
    )
    for row in rows:
        assert least <= row.excluded <= most
        assert row.n + row.excluded == 99 * len(windows)
        assert row.value is not None
    assert by_metric(rows, folder, "gptq-100")["kl_mean"].value == pytest.approx(0, abs=1e-5)
    build([tmp_path / "run"])
    assert "not finite" in (tmp_path / "run" / "report" / "report.md").read_text()


def test_items_with_non_finite_logits_are_wrong_and_counted(broken: tuple[Path, int], tmp_path: Path) -> None:
    task = tmp_path / "t.jsonl"
    items = [
        {"query": query, "choices": ["one", "two"], "gold": 0}
        for query in ("The first return", "The first stone")
    ]
    task.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    (row, *_) = evaluate([broken[0]], tasks=[task], run=RUN)
    assert row.detail["non_finite_items"] == 1
    assert row.samples[0] == 0
    assert "1 of 2 items" in row.detail["remarks"][0]
