"""Where the output head comes from: its own tensor, or the token embedding, as transformers decides it."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.safetensors_header import StoredTensor
from quantize.errors import Unsupported
from quantize.gguf.families.base import Mapped

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
Found = list[tuple[int, Mapped]]


def settle_head(
    found: Found, architecture: str, kind: str, tied: bool | None, checkpoint: Checkpoint
) -> tuple[Found, list[Note]]:
    """``found`` with the head to be written.

    ``tied``: tie_word_embeddings, None where the config does not say.

    transformers ties where the config says so, unless the files hold two that differ: then both count. A head
    that is stored and tied is the embedding, so the two become one tensor; llama.cpp uses the embedding where
    there is no head. Errors: Unsupported where llama.cpp has no place for this model's head (``kind`` never),
    or no tensor is left for it.
    """
    mapped = {m.name: (position, m) for position, m in found}
    position, embedding = mapped[EMBEDDING]
    if HEAD not in mapped:
        if tied is False:
            raise Unsupported(
                f"{checkpoint.source}: tensor lm_head.weight is missing "
                "and the config says that it is not tied to the embedding"
            )
        if kind != "required":
            return found, []
        why = f"llama.cpp's {architecture} needs output.weight, which this model ties to the embedding"
        note = Note(tensor=HEAD, what="the embedding is written twice", why=why)
        return [*found, (position, replace(embedding, name=HEAD))], [note]
    head = mapped[HEAD][1]
    name = head.sources[0]
    alike = bool(tied or kind == "never") and _same(embedding, head, checkpoint)
    if alike and kind != "required":
        both = replace(
            embedding,
            sources=embedding.sources + head.sources,
            build=_first(embedding),
            restore=lambda array: [array, array],
        )
        one = [(at, both if m is embedding else m) for at, m in found if m is not head]
        why = f"it is {embedding.sources[0]} byte for byte, which llama.cpp uses if there is no other head"
        return one, [Note(tensor=name, what=f"not written separately from {EMBEDDING}", why=why)]
    if kind == "never":
        raise Unsupported(
            f"{checkpoint.source}: {name} is not {embedding.sources[0]}, "
            f"and llama.cpp's {architecture} has no separate head"
        )
    if tied and not alike:
        why = f"{name} and {embedding.sources[0]} differ; transformers then keeps both"
        return found, [Note(tensor=name, what="written although the config says that it is tied", why=why)]
    return found, []


def _first(mapped: Mapped) -> Callable[[list[np.ndarray]], np.ndarray]:
    return lambda arrays: mapped.build(arrays[:1])


def _same(embedding: Mapped, head: Mapped, checkpoint: Checkpoint) -> bool:
    a, b = (checkpoint.tensors[m.sources[0]] for m in (embedding, head))
    if not (embedding.pure and head.pure) or (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    if isinstance(a, StoredTensor) and isinstance(b, StoredTensor):
        return _same_bytes(a, b, _state(a.file), _state(b.file))
    first, second = (np.ascontiguousarray(checkpoint.read(info.name)).view(np.uint8) for info in (a, b))
    return np.array_equal(first, second)


def _state(path: Path) -> tuple[int, int]:
    return path.stat().st_size, path.stat().st_mtime_ns


@lru_cache(maxsize=8)  # a conversion plans several times, and these are large
def _same_bytes(
    a: StoredTensor, b: StoredTensor, state_a: tuple[int, int], state_b: tuple[int, int], step: int = 1 << 24
) -> bool:
    with open(a.file, "rb") as first, open(b.file, "rb") as second:
        first.seek(a.offset)
        second.seek(b.offset)
        sizes = [min(step, a.size_bytes - done) for done in range(0, a.size_bytes, step)]
        return all(first.read(size) == second.read(size) for size in sizes)
