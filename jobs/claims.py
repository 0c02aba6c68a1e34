"""What a run may make for the cache that it shares with others: one run makes it, the others wait for it."""

from pathlib import Path

from jobs.cache import SharedCache
from jobs.cache_bucket import BucketCache
from jobs.sharing import Share
from jobs.steps.step import Step


class Claims:
    """``cache``: None where there is none, and everything may be made. ``run``: the run folder, absolute."""

    def __init__(self, cache: SharedCache | BucketCache | None, run: Path):
        self.cache, self.run = cache, run
        self._claimed: dict[str, tuple[str, Share]] = {}  # step id -> its key, its way through the cache

    def claim(self, step: Step, key: str) -> bool:
        """Whether this run may make the step's output, until ``release``; False while another is at it."""
        share = step.share(self.cache, self.run) if self.cache else None
        if self.cache and share:
            if not self.cache.claim(key):
                return False
            self._claimed[step.id] = key, share
        return True

    def fetch(self, step: Step) -> bool:
        """Whether the step's output lies in place now, since the cache had it. Errors: those of
        ``Share.fetch``."""
        key, share = self._claimed.get(step.id, ("", None))
        return share is not None and share.fetch(key)

    def keep(self, step: Step) -> None:
        """Give what the step has made to the others."""
        if step.id in self._claimed:
            key, share = self._claimed[step.id]
            share.keep(key)

    def held(self, step: Step) -> list[int]:
        """Descriptors of locks, for the step's process to inherit."""
        return self.cache.held(self._claimed[step.id][0]) if self.cache and step.id in self._claimed else []

    def release(self, step: Step) -> None:
        if self.cache and step.id in self._claimed:
            self.cache.release(self._claimed.pop(step.id)[0])
