"""What ``quantwright verify`` finds."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from quantize.inspection.problems import Problem

Status = Literal["agrees", "differs", "ran", "skipped", "failed"]


@dataclass(frozen=True)
class Ran:
    """One program. ``why``: of one that was skipped or failed, or that differs. ``kl``: mean divergence of
    its logits from the second reader's weights, nats, at most ``tolerance``; ``top1``: part of the positions
    whose likeliest token is theirs; ``kl_source`` and ``top1_source``: the same of the source, recorded.
    ``text``: what it says greedily after ``prompt``."""

    name: str
    status: Status
    why: str = ""
    version: str = ""
    kl: float | None = None
    tolerance: float | None = None
    largest: float | None = None
    top1: float | None = None
    kl_source: float | None = None
    top1_source: float | None = None
    detail: str = ""
    ids: tuple[int, ...] = ()
    text: str = ""


@dataclass(frozen=True)
class Between:
    """Two programs: ``kl`` (first || second), part of equal likeliest tokens, how many tokens of the greedy
    texts are equal from the start."""

    first: str
    second: str
    kl: float
    top1: float
    equal_tokens: int


@dataclass
class Report:
    """``compared``: what the logits were held against; ``why_not``: why not against this program's reading of
    the weights. ``kl_recipe``: divergence of the second reader's weights from the source's, recorded."""

    model: str
    storage: str
    source: str | None
    problems: list[Problem] = field(default_factory=list)
    runtimes: list[Ran] = field(default_factory=list)
    between: list[Between] = field(default_factory=list)
    prompt: str = ""
    weights_read: int = 0
    kl_recipe: float | None = None
    why_not: str = ""

    @property
    def wrong(self) -> bool:
        return any(p.level == "wrong" for p in self.problems) or any(
            ran.status in ("differs", "failed") for ran in self.runtimes
        )

    @property
    def ran(self) -> bool:
        return any(ran.status in ("agrees", "differs", "ran") for ran in self.runtimes)

    def document(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**asdict(self), "agree": not self.wrong}
