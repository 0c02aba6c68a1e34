"""Inputs changed in one place, and attempts on them within limits of time and memory, each in a child of this
process.

A function that reads a stranger's file may return, or raise a ``QuantwrightError`` of one line. Everything
else is a ``Fault``: another exception, a hang, a death by signal, memory. The child is forked, so that an
attempt may be a closure and the modules that it needs are imported once, by the test.
"""

import copy
import faulthandler
import itertools
import json
import os
import random
import re
import resource
import select
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from quantize.errors import QuantwrightError

T = TypeVar("T")
Path = tuple[str | int, ...]
#: what each field of a JSON document is set to
HOSTILE: tuple[Any, ...] = (None, -1, 0, 1e308, "x", [], {}, True, 2**31, 10**30, float("nan"))
#: the child's address space may grow by this, so that a bomb is a MemoryError and not the machine's end
FUSE_BYTES = 6 << 30
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True)
class Fault:
    label: str
    kind: str  # "traceback", "several lines", "hang", "died", "memory"
    detail: str


def places(value: Any, most: int = 3) -> Iterator[Path]:
    """The way to everything inside a JSON value: all keys of an object (of a large one, a vocabulary, the
    first few), the first and last few items of a list."""
    if isinstance(value, dict):
        keys: Iterable[str | int] = value if len(value) <= 100 else list(value)[:most]
    elif isinstance(value, list):
        keys = range(len(value)) if len(value) <= most else [*range(most - 1), len(value) - 1]
    else:
        return
    for key in keys:
        yield (key,)
        for rest in places(value[key], most):
            yield (key, *rest)


def replaced(value: Any, path: Path, new: Any) -> Any:
    """A copy of ``value`` with ``new`` at ``path``; what is not on the way is shared."""
    if not path:
        return new
    changed = copy.copy(value)
    changed[path[0]] = replaced(value[path[0]], path[1:], new)
    return changed


def without(value: Any, path: Path) -> Any:
    """A copy of ``value`` in which the key or item at ``path`` is absent."""
    changed = copy.copy(value)
    if len(path) == 1:
        del changed[path[0]]
    else:
        changed[path[0]] = without(value[path[0]], path[1:])
    return changed


def mutations(value: Any, values: Sequence[Any] = HOSTILE, most: int = 3) -> Iterator[tuple[str, Any]]:
    """(what was changed, the changed document), one place at a time: each of ``values`` there, and the place
    left out."""
    for path in places(value, most):
        name = ".".join(map(str, path))
        for new in values:
            yield f"{name}={json.dumps(new)}", replaced(value, path, new)
        yield f"{name} left out", without(value, path)


def damaged(raw: bytes, count: int, seed: int = 0, within: int | None = None) -> Iterator[tuple[str, bytes]]:
    """``count`` copies of a file with bytes changed, cut off, doubled or put in, all within its first
    ``within`` bytes."""
    chance = random.Random(seed)
    end = min(len(raw), within or len(raw))
    for _ in range(count):
        at, length = chance.randrange(end), chance.randint(1, 8)
        kind = chance.choice(("changed", "cut", "taken out", "put in"))
        new = chance.choice(
            (bytes(chance.randrange(256) for _ in range(length)), b"\xff" * length, b"\0" * length)
        )
        parts = {
            "changed": raw[:at] + new + raw[at + length :],
            "cut": raw[:at],
            "taken out": raw[:at] + raw[at + length :],
            "put in": raw[:at] + new + raw[at:],
        }
        yield f"{kind} at {at} ({new.hex()})", parts[kind]


def sample(inputs: Iterable[T], count: int, seed: int = 0) -> list[T]:
    """At most ``count`` of them, drawn once and for all, in their order."""
    everything = list(inputs)
    chosen = sorted(random.Random(seed).sample(range(len(everything)), min(count, len(everything))))
    return [everything[index] for index in chosen]


def faults(
    attempt: Callable[[T], object],
    inputs: Iterable[tuple[str, T]],
    *,
    seconds: float = 30,
    memory_bytes: int = 2 << 30,
) -> list[Fault]:
    """Try each input. ``memory_bytes``: by how much resident memory may grow while one is tried."""
    waiting = iter(enumerate(inputs))
    found: list[Fault] = []
    left: tuple[int, tuple[str, T]] | None = None
    # one child a round: a new one only after a hang or a death
    while (left := next(waiting, None)) is not None:
        receive, send = os.pipe()
        child = os.fork()
        if not child:
            os.close(receive)
            _child(attempt, itertools.chain([left], waiting), send, memory_bytes)
        os.close(send)
        done, fault = _watch(child, receive, seconds)
        os.close(receive)
        found += done
        if fault is None:
            break
        # the child ran through its own copy of the iterator: go to where it stopped
        number, one = fault
        at = left
        while at[0] < number:
            at = next(waiting)
        found.append(Fault(at[1][0], one.kind, one.detail))
    return found


def _child(attempt: Callable[[Any], object], inputs: Iterable[Any], send: int, memory_bytes: int) -> None:
    try:
        faulthandler.disable()
        silence = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silence, stream)
        resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + FUSE_BYTES,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number, (label, value) in inputs:
            os.write(send, f"{number}\n".encode())
            before = _reset_peak()
            kind, detail = _tried(attempt, value)
            grown = _status("VmHWM") - before
            if kind is None and grown > memory_bytes:
                kind, detail = "memory", f"{grown / 1e9:.1f} GB"
            if kind is not None:
                # one write of a pipe is whole up to 4096 bytes
                os.write(send, (json.dumps([label[:200], kind, detail[-1500:]]) + "\n").encode())
        os.write(send, b"end\n")
    finally:
        os._exit(0)


def _tried(attempt: Callable[[Any], object], value: Any) -> tuple[str | None, str]:
    try:
        attempt(value)
    except QuantwrightError as error:
        if _CONTROL.search(str(error)):
            return "several lines", repr(str(error))
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-3:]
        frames = " < ".join(
            f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}" for frame in reversed(where)
        )
        return "traceback", f"{type(error).__name__}: {str(error)[:200]} ({frames})"
    return None, ""


def _watch(child: int, receive: int, seconds: float) -> tuple[list[Fault], tuple[int, Fault] | None]:
    """-> (faults the child told of, (number of the input that ended it, how) or None where it came to its
    end)"""
    found, number, buffer = [], -1, b""
    while True:
        ready, _, _ = select.select([receive], [], [], seconds)
        if not ready:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return found, (number, Fault("", "hang", f"over {seconds} s"))
        block = os.read(receive, 1 << 16)
        buffer += block
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            if line == b"end":
                os.waitpid(child, 0)
                return found, None
            if line.startswith(b"["):
                found.append(Fault(*json.loads(line)))
            else:
                number = int(line)
        if not block:
            _, status = os.waitpid(child, 0)
            return found, (number, Fault("", "died", f"status {status}"))


def _status(key: str) -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key + ":"))


def _reset_peak() -> int:
    """Resident bytes now, from which VmHWM counts on."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    return _status("VmRSS")
