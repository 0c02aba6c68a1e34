"""The view of a checkpoint's folder that a library gets: nothing that holds or names code, unless the person
trusts it.

transformers, GPTQModel (through tokenicer), optimum and vLLM each have their own ways to a checkpoint's
Python, and not all of them ask: ``auto_map`` in any config file, ``trust_remote_code`` set by a retry,
classes named with their module (``tokenizer_class: tokenization_x.Tokenizer`` is imported), attention kernels
of a Hub repository, ``custom_generate``. They get a folder without any of that, so none of their arguments,
defaults or retries matters.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quantize.checkpoint.weight_files import index_shards, is_adapter_beside
from quantize.code_guard import hub_code_folders, no_code_from
from quantize.errors import QuantwrightError, Unsupported
from quantize.files import TEMPLATES, inside, read_json
from quantize.staging import temporary_folder

ADVICE = "nothing from a checkpoint is executed unless you pass --trust-remote-code"
OWN_CODE = "config.json: auto_map"  # as ``names_code`` says it
#: ends of names of what a model, its tokenizer and its templates are read from
READ = (".json", ".safetensors", ".jinja", ".txt", ".model", ".tiktoken", ".bpe", ".vocab", ".spm")
#: ends of names of code, and of what may run code when it is opened
CODE = (
    ".py", ".pyc", ".pyo", ".pyd", ".so", ".dll", ".dylib", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle",
    ".joblib", ".h5",
)  # fmt: skip
#: the config files that libraries read
CONFIGS = frozenset({
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
    "processor_config.json",
    "preprocessor_config.json", "video_preprocessor_config.json", "quantize_config.json", "quant_config.json",
    "chat_template.json", "configuration.json",
})  # fmt: skip
#: keys, at any depth of a config file, that name code or ask for it
CODE_KEYS = frozenset(
    {
        "auto_map",
        "custom_pipelines",
        "custom_generate",
        "trust_remote_code",
        "use_kernels",
        "kernel_config",
        "kernel_mapping",
    }
)
CLASS_KEYS = frozenset({
    "tokenizer_class", "slow_tokenizer_class", "fast_tokenizer_class", "processor_class",
    "image_processor_type",
    "feature_extractor_type", "video_processor_type", "image_processor_class", "feature_extractor_class",
})  # fmt: skip
#: what transformers itself computes attention and experts with; anything else is fetched
IMPLEMENTATIONS = frozenset({
    "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4",
    "batched_mm", "grouped_mm",
})  # fmt: skip


@contextlib.contextmanager
def library_folder(
    folder: Path,
    trusted: bool,
    *,
    source: str | None = None,
    scratch: Path | None = None,
    always: bool = False,
) -> Iterator[Path]:
    """``folder`` as a library may open it: the folder itself; or, if anything in it is or names code, or an
    adapter lies beside the weights (which transformers would apply), a temporary folder of links and of
    config files without that.

    ``trusted``: with its code. ``source``: what the person calls it. ``always``: the temporary folder in any
    case.

    Errors: BadInput where a config file cannot be read; Unsupported where a library was about to execute code
    anyway.
    """
    with contextlib.ExitStack() as stack:
        seen = folder
        if always or is_adapter_beside(folder) or (not trusted and names_code(folder)):
            made = stack.enter_context(temporary_folder("folder", scratch))
            seen = made / (folder.resolve().name or "model")
            _fill(seen, folder.absolute(), trusted)
        guard = no_code_from(
            folder, seen, *hub_code_folders(), whose=source or str(folder), advice=ADVICE, trusted=trusted
        )
        stack.enter_context(guard)
        try:
            yield seen
        except QuantwrightError as error:
            message = str(error).replace(str(seen), str(folder))
            if isinstance(error, Unsupported) and not trusted and OWN_CODE in names_code(folder):
                message += f"; it may need its own code ({OWN_CODE}), and {ADVICE}"
            if message == str(error):
                raise
            raise type(error)(message) from error


def names_code(folder: Path) -> list[str]:
    """What in ``folder`` is code (``modeling_x.py``) or names some (``config.json: auto_map``). Errors:
    BadInput."""
    found = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.endswith(CODE) or (entry.is_dir() and entry.name == "custom_generate"):
            found.append(entry.name)
        elif entry.name in CONFIGS and entry.is_file():
            removed: list[str] = []
            without_code(read_json(inside(folder, entry.name)), removed)
            found += [f"{entry.name}: {key}" for key in removed]
    return found


def without_code(value: Any, removed: list[str]) -> Any:
    """A config without the keys that name code; those go into ``removed``."""
    if isinstance(value, list):
        return [without_code(one, removed) for one in value]
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, inner in value.items():
        if _is_code(key, inner):
            removed.append(str(key))
        else:
            kept[key] = without_code(inner, removed)
    return kept


def _is_code(key: str, value: Any) -> bool:
    if key in CODE_KEYS:
        return value not in (None, False)
    if key in CLASS_KEYS:
        return value is not None and not (isinstance(value, str) and value.isidentifier())
    if key.endswith("_implementation"):
        named = list(value.values()) if isinstance(value, dict) else [value]
        return any(
            one is not None and one not in IMPLEMENTATIONS for one in named if not isinstance(one, bool)
        )
    return False


def _fill(made: Path, folder: Path, trusted: bool) -> None:
    made.mkdir()
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name = entry.name
        if name.startswith("adapter_"):
            continue
        if not trusted and not (name == TEMPLATES or (entry.is_file() and name.endswith(READ))):
            continue
        path = inside(folder, name)
        removed: list[str] = []
        config = without_code(read_json(path), removed) if not trusted and name in CONFIGS else None
        if removed:
            (made / name).write_text(json.dumps(config), encoding="utf-8")
        else:
            (made / name).symlink_to(path)
        if name.endswith(".safetensors.index.json") and not trusted:
            for shard in set(index_shards(path).values()):
                (made / shard).parent.mkdir(parents=True, exist_ok=True)
                if "/" in shard and not (made / shard).exists():
                    (made / shard).symlink_to(inside(folder, shard))
