"""Continuations of the same prompts side by side, each marked where it first differs from the source's."""

from dataclasses import dataclass

from reports.rows import Group


@dataclass(frozen=True)
class Continuation:
    """``same`` is the part that equals the source's, ``rest`` what follows the first difference."""

    label: str
    family: str
    same: str
    rest: str
    identical: bool
    tokens: int | None  # equal to the source's, where token ids were recorded


@dataclass(frozen=True)
class Prompt:
    prompt: str
    reference: str
    continuations: tuple[Continuation, ...]


def side_by_side(group: Group) -> list[Prompt]:
    """From results of metric ``generations``, whose ``detail["items"]`` are ``{"prompt", "text"}`` with,
    perhaps, ``"ids"``."""
    if group.reference is None:
        return []
    source = {(length, item["prompt"]): item for length, item in _items(group, group.reference.label)}
    out = []
    for (wanted, prompt), theirs in source.items():
        found = []
        for row in group.rows:
            if row is group.reference:
                continue
            for length, item in _items(group, row.label):
                if (length, item["prompt"]) == (wanted, prompt):
                    common = _common(item["text"], theirs["text"])
                    equal = (
                        _common(item["ids"], theirs["ids"]) if item.get("ids") and theirs.get("ids") else None
                    )
                    same = item["text"] == theirs["text"]
                    found.append(
                        Continuation(
                            row.label, row.family, item["text"][:common], item["text"][common:], same, equal
                        )
                    )
        out.append(Prompt(prompt, theirs["text"], tuple(found)))
    return out


def _items(group: Group, label: str) -> list[tuple[str, dict]]:  # type: ignore[type-arg]
    """(protocol, which says how many tokens were asked for; item)."""
    row = next(row for row in group.all_rows if row.label == label)
    results = [r for r in (*row.cells.values(), *row.others) if r.metric == "generations"]
    return [(r.protocol, item) for r in results for item in r.detail.get("items", ())]


def _common(a: str | list[int], b: str | list[int]) -> int:
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count
