"""Pooling of an embedding model: what sentence-transformers' folders say, in llama.cpp's terms."""

from typing import Any

from gguf import GGUFValueType, PoolingType

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import BadInput
from quantize.files import inside, parse_json, read_bytes, read_json

MODES = {"mean": PoolingType.MEAN, "mean_tokens": PoolingType.MEAN, "cls": PoolingType.CLS,
"cls_token": PoolingType.CLS,
         "lasttoken": PoolingType.LAST, "last_token": PoolingType.LAST}  # fmt: skip


def pooling_kvs(checkpoint: Checkpoint) -> tuple[dict[str, tuple[Any, GGUFValueType]], list[Note]]:
    """``pooling_type`` (without ``{arch}.``) from modules.json and the config of its pooling module; {} for
    other checkpoints.

    Errors: BadInput where modules.json is not a list of modules.
    """
    path = checkpoint.folder / "modules.json"
    if not path.is_file():
        return {}, []
    modules = parse_json(read_bytes(path), str(path))
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise BadInput(f"{path}: expected a list of modules; fetch the file again")
    kvs: dict[str, tuple[Any, GGUFValueType]] = {}
    notes: list[Note] = []
    for module in modules:
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            config = inside(checkpoint.folder, f"{module.get('path')}/config.json")
            modes = _modes(read_json(config)) if config.is_file() else []
            known = {MODES[mode] for mode in modes if mode in MODES}
            if len(modes) == 1 and known:
                kvs["pooling_type"] = (int(known.pop()), GGUFValueType.UINT32)
            else:
                said = " and ".join(modes) or "nothing"
                why = f"llama.cpp pools by mean, cls or last token, {module.get('path')} says {said}"
                notes.append(Note(tensor="*", what="pooling not kept", why=why))
        elif kind not in ("Transformer", "Normalize"):  # llama.cpp's callers normalise
            why = (
                f"modules.json has a module {kind}, which llama.cpp's "
                f"{checkpoint.architecture} does not compute"
            )
            notes.append(Note(tensor="*", what=f"{kind} after the pooling not kept", why=why))
    return kvs, notes


def _modes(config: dict[str, Any]) -> list[str]:
    """Names as sentence-transformers has them: ``pooling_mode`` (a name), or every ``pooling_mode_NAME`` that
    is true."""
    named = config.get("pooling_mode")
    if isinstance(named, str):
        return named.split("+")
    return [
        key.removeprefix("pooling_mode_")
        for key, value in config.items()
        if key.startswith("pooling_mode_") and value is True
    ]
