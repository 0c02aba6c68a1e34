"""How a run of a job ended."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Summary:
    """How it ended. ``report`` is the document that the report step printed."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)
    unsupported: list[str] = field(default_factory=list)
    interrupted: int = 0  # by which signal
    report: dict[str, Any] | None = None

    @property
    def exit_code(self) -> int:
        return 128 + self.interrupted if self.interrupted else 1 if self.failed or self.blocked else 0
