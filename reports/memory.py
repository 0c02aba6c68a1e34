"""How much memory serving takes: the weights, the KV cache at a context, and what the program needs
besides."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from quantize.checkpoint.kv_cache import KvShape, kv_shape
from quantize.errors import BadInput
from quantize.files import read_json
from quantize.metrics import GPU_MEMORY_BYTES, PEAK_MEMORY_BYTES, TG_TOKENS_PER_S
from reports.rows import Group, Row

ASSUMED_OVERHEAD = 512 << 20
ASSUMED_SHARE = 0.10


def find_shapes(group: Group, roots: Sequence[Path] = (Path(),)) -> dict[str, KvShape | None]:
    """Row label -> from the config.json of the artifact, else of its source, where either still lies where it
    was measured."""
    names = [r.subject.model for r in group.all_rows] + [
        r.subject.name for r in group.all_rows if r.subject.status == "ok"
    ]
    common = _first_shape(dict.fromkeys([group.model, *names]), roots)
    return {row.label: _first_shape([row.subject.name], roots) or common for row in group.rows}


def _first_shape(names: Iterable[str], roots: Sequence[Path]) -> KvShape | None:
    for name in filter(None, names):
        for root in roots:
            path = root / name / "config.json"
            try:
                shape = kv_shape(read_json(path), str(path)) if path.is_file() else None
            except (BadInput, OSError, ValueError):  # a name that no file can have among them
                continue
            if shape:
                return shape
    return None


def read_shape(model: Path) -> KvShape:
    """Errors: BadInput where ``model`` holds no config.json that says what the cache takes."""
    path = model / "config.json" if model.is_dir() else model
    try:
        shape = kv_shape(read_json(path), str(path))
    except BadInput as error:
        raise BadInput(f"--model {model}: {error}; give the folder of the source checkpoint") from None
    if shape is None:
        raise BadInput(f"{path}: has no num_hidden_layers and heads; give --kv-bytes-per-token instead")
    return shape


def overhead(row: Row, shape: KvShape | None) -> tuple[int, str]:
    """(bytes, how it was found): measured peak less weights and cache, or an assumption where no peak was
    measured."""
    weights = row.subject.size_bytes or 0
    for metric, title in ((GPU_MEMORY_BYTES, "GPU memory"), (PEAK_MEMORY_BYTES, "peak memory")):
        result = row.cells.get(metric)
        if result is not None and result.value:
            speed = row.cells.get(TG_TOKENS_PER_S)
            digits = "".join(c for c in (speed.protocol.split("@")[0] if speed else "") if c.isdigit())
            tokens = int(digits or 0)
            cache = shape.bytes_at(tokens) if shape else 0
            rest = max(0, round(result.value - weights - cache))
            return rest, f"measured {title} minus weights and the cache of {tokens} tokens"
    return round(
        ASSUMED_OVERHEAD + ASSUMED_SHARE * weights
    ), "assumed: 512 MiB and 10 % of the weights; `quantwright bench` measures it"
