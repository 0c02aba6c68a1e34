"""What of the reference is kept between calls, so that it runs once for any number of candidates: its logits
and generations."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evals.reference import (
    CachedReference,
    ReferenceRows,
    SideBySideReference,
    cache_bytes,
    cache_key,
    find_cache,
    write_cache,
)
from evals.windows import Windows
from quantize.into_place import write_json
from quantize.progress import Advance
from quantize.recipe import RunOptions
from quantize.runtimes.base import Runtime
from quantize.runtimes.opening import open_without_weights
from quantize.units import spell_gib


class Keeper:
    """``root``: folder, None: what is kept lies in ``scratch`` and does not outlive this process. ``limit``:
    bytes of logits of one protocol. ``digest``: its own."""

    def __init__(
        self,
        root: Path | None,
        limit: int,
        digest: str,
        say: Callable[[str], None],
        scratch: Path | None = None,
    ):
        self.root, self.limit, self.digest, self.say, self.scratch = root, limit, digest, say, scratch
        self._found: dict[str, CachedReference] = {}

    def open_light(
        self,
        path: Path,
        run: RunOptions,
        windows: Callable[[Runtime], Sequence[Windows]],
        others: "Callable[[Runtime], Sequence[Kept]]",
    ) -> Runtime | None:
        """The reference without its weights, where everything needed from it is stored: logits on windows,
        and ``others``."""
        light = open_without_weights(path, run) if self.root else None
        if light is None:
            return None
        if any(kept.read() is None for kept in others(light)) or not all(
            self.find(each, light) for each in windows(light)
        ):
            return None
        self.say("all results of the reference were kept, so its weights are not loaded")
        return light

    def find(self, windows: Windows, runtime: Runtime) -> CachedReference | None:
        """What an earlier call kept, where that is within the limit; once found, it stays open."""
        if not self.root or cache_bytes(windows, runtime.vocabulary) > self.limit:
            return None
        key = cache_key(windows, self.digest, runtime.describe())
        if key not in self._found and (found := find_cache(self.root, key)):
            self._found[key] = found
        return self._found.get(key)

    def keep(self, windows: Windows, runtime: Runtime, check_self: bool, advance: Advance) -> ReferenceRows:
        """Run the reference, or where its logits take too much room, leave it to run beside each
        candidate."""
        if cache_bytes(windows, runtime.vocabulary) <= self.limit:
            key = cache_key(windows, self.digest, runtime.describe())
            return write_cache(
                runtime,
                windows,
                key,
                self.root,
                advance,
                check_self=check_self,
                digest=self.digest,
                scratch=self.scratch,
            )
        self.say(
            f"{windows.protocol.name}: the reference's logits take "
            f"{spell_gib(cache_bytes(windows, runtime.vocabulary))}, more than the cache limit "
            f"of {spell_gib(self.limit)}: the reference runs again beside every candidate"
        )
        return SideBySideReference(runtime)

    def other(self, what: str, runtime: Runtime, *content: Any) -> "Kept | None":
        """``what`` else is kept of the reference, as it came from ``content``: generations, floors."""
        if not self.root:
            return None
        made_from = [self.digest, runtime.describe(), *content]
        key = hashlib.sha256(json.dumps(made_from, sort_keys=True, default=str).encode()).hexdigest()
        return Kept(self.root / f"{what}-{key[:16]}.json")


class Kept:
    """A list of JSON objects in ``file``."""

    def __init__(self, file: Path):
        self.file = file

    def read(self) -> list[dict[str, Any]] | None:
        try:
            items = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return items if isinstance(items, list) else None

    def write(self, items: list[dict[str, Any]]) -> None:
        write_json(self.file, items, indent=None)
