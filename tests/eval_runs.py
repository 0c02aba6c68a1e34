"""How tests of evaluations run, and how they find rows."""

from pathlib import Path

from quantize.recipe import RunOptions
from quantize.results import EvalResult

RUN = RunOptions(threads=1, progress=False)


def by_metric(rows: list[EvalResult], artifact: Path, protocol: str) -> dict[str, EvalResult]:
    return {row.metric: row for row in rows if row.artifact == str(artifact) and row.protocol == protocol}


def token_ids(checkpoint: Path, body: str) -> list[int]:
    from tokenizers import Tokenizer

    ids: list[int] = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(body).ids
    return ids
