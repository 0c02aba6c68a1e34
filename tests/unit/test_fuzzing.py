"""The fuzz driver tells every kind of fault, and goes on after it."""

import os
import time

from fuzzing import damaged, faults, mutations, sample

from quantize.errors import BadInput


class Unprintable(BadInput):
    def __str__(self) -> str:
        return "one\ntwo"


def attempt(value: object) -> None:
    if value == "traceback":
        raise KeyError("field")
    if value == "panic":
        raise BaseException("not even an Exception")
    if value == "several lines":
        raise Unprintable
    if value == "hang":
        time.sleep(60)
    if value == "died":
        os.abort()
    if value == "memory":
        bytearray(300 << 20)
    if value == "refused":
        raise BadInput("one line")


def test_every_kind_of_fault_is_told_and_the_rest_goes_on() -> None:
    values = (
        "good",
        "hang",
        "traceback",
        "died",
        "refused",
        "memory",
        "panic",
        "died",
        "several lines",
        "good",
    )
    found = faults(
        attempt, ((f"{i}", value) for i, value in enumerate(values)), seconds=1.5, memory_bytes=200 << 20
    )
    assert sorted((fault.label, fault.kind) for fault in found) == [
        ("1", "hang"), ("2", "traceback"), ("3", "died"), ("5", "memory"), ("6", "traceback"), ("7", "died"),
        ("8", "several lines"),
    ]  # fmt: skip


def test_mutations_reach_every_place_and_leave_the_original_alone() -> None:
    value = {"a": {"b": [1, 2]}, "c": 3}
    changed = dict(mutations(value, values=(None,)))
    assert value == {"a": {"b": [1, 2]}, "c": 3}
    assert changed["a.b.1=null"] == {"a": {"b": [1, None]}, "c": 3}
    assert changed["a.b left out"] == {"a": {}, "c": 3}
    assert len(changed) == 2 * 5
    assert len(set(dict(damaged(b"0123456789" * 20, 50)).values())) > 40
    assert sample(range(100), 5) == sample(range(100), 5)
