"""Whether a checkpoint of a known architecture means another class than the library's.

Code is taken out of what a library opens (``library_folder``). That is right where it is the library's own
class, as published before the library had it (Phi-3, DeepSeek-V3). Where a class of another name is meant,
what would be made without it is another model.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quantize.checkpoint.library_folder import ADVICE
from quantize.errors import Unsupported
from quantize.files import inside, read_json
from quantize.terminal import printable


def check_own_classes(model: str, folder: Path, config: dict[str, Any]) -> None:
    """``model``: what the person calls it. Errors: Unsupported where transformers has the architecture that
    ``config`` names, and the model or tokenizer class of the checkpoint's own code is another one."""
    architecture = str((config.get("architectures") or [""])[0])
    if not _listed(architecture, "modeling_auto.py"):
        return  # GGUF knows some of those; whatever else opens the model says that it needs the code
    for name in _classes(config, "AutoModelForCausalLM"):
        if name.casefold() != architecture.casefold():
            raise _refused(model, "config.json", name, f"architectures says {architecture}")
    path = inside(folder, "tokenizer_config.json")
    tokenizer = read_json(path) if path.is_file() else {}
    if not isinstance(tokenizer, dict):
        return  # whoever reads the tokenizer says so
    named = str(tokenizer.get("tokenizer_class") or "").removesuffix("Fast")
    own = [name.removesuffix("Fast") for name in _classes(tokenizer, "AutoTokenizer")]
    if named in own and not _listed(named, "tokenization_auto.py"):
        raise _refused(model, "tokenizer_config.json", named, "transformers has no tokenizer of that name")


def _refused(model: str, file: str, name: str, why: str) -> Unsupported:
    return Unsupported(
        f"{model}: {file} names the class {printable(name, 60)} of the checkpoint's own code, and {why}; "
        f"{ADVICE}"
    )


def _classes(config: dict[str, Any], loader: str) -> list[str]:
    """Names without their modules: ``repo--module.Class`` or a list of those, for slow and fast."""
    entries = config.get("auto_map")
    entry = entries.get(loader) if isinstance(entries, dict) else None
    return [
        one.rpartition(".")[2] for one in (entry if isinstance(entry, list) else [entry]) if type(one) is str
    ]


def _listed(name: str, lists: str) -> bool:
    """Read as text: importing transformers' lists imports torch."""
    return name.isidentifier() and f'"{name}"' in _text(lists)


@cache
def _text(lists: str) -> str:
    found = find_spec("transformers")
    path = Path(((found and found.submodule_search_locations) or [""])[0]) / "models" / "auto" / lists
    return path.read_text(encoding="utf-8") if path.is_file() else ""
