"""What a process that has opened a runtime is asked for: logits of rows, a greedy continuation, how texts are
split."""

from pathlib import Path
from typing import Any

import numpy as np

from quantize.errors import QuantwrightError
from quantize.gguf.tokenizer.verify import verify_tokenizer
from quantize.runtimes.base import Runtime
from quantize.sources.opening import open_checkpoint


def served(
    runtime: Runtime, request: dict[str, Any], rows: np.ndarray | None, folder: Path
) -> dict[str, Any]:
    """``rows`` (n, length): their logits, float32, go into ``folder / "logits.f32"``; of a runtime that gives
    none, ln p of the rows' own tokens from the second on go into ``scores.npy``. ``request``: ``prompt`` and
    ``tokens`` of a greedy continuation; ``split_as``: a folder whose tokenizer the runtime's is compared
    with."""
    found: dict[str, Any] = {}
    if rows is not None and runtime.gives_logits:
        rows = rows[:, : min(rows.shape[1], runtime.context)]
        with open(folder / "logits.f32", "wb") as file:
            runtime.logits(rows, 0, lambda row, first, logits: logits.astype(np.float32).tofile(file))
    elif rows is not None:
        scores = runtime.token_scores(rows.tolist(), [1] * len(rows))
        np.save(folder / "scores.npy", np.stack([ln_p for ln_p, _ in scores]))
    if request.get("prompt"):
        found["generated"] = runtime.generate(request["prompt"], int(request["tokens"]))
    if request.get("split_as"):
        try:
            report = verify_tokenizer(open_checkpoint(request["split_as"]), runtime.tokenize)
            first = report.fixable[0] if report.fixable else None
            found["tokenizer"] = {
                "texts": report.compared,
                "summary": report.summary(),
                "differ": len(report.fixable),
                "limits": len(report.mismatches) - len(report.fixable),
                "example": f"{first.text[:40]!r} gives {first.llamacpp_ids[:6]}, its source "
                f"{first.source_ids[:6]} ({first.cause})" if first else "",
            }  # fmt: skip
        except QuantwrightError as error:
            found["tokenizer"] = {"why_not": str(error)}
    return found
