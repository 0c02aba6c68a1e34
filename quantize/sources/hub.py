"""From what a person types to a folder, or a GGUF file, on disk: a local path (tried first), a Hub id
``org/name[@revision]``, one file of a GGUF repository, ``org/name:Q4_K_M``, or a model of ModelScope,
``modelscope:org/name[@revision]``.

HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN mean what they mean to huggingface_hub, which
does the work.
"""

import glob
import re
from collections.abc import Callable
from pathlib import Path

from quantize.checkpoint.weight_files import INDEX, OTHERS, SINGLE, index_shards
from quantize.errors import BadInput
from quantize.files import typed_path
from quantize.gguf.container.files import find_gguf
from quantize.sources import modelscope as modelscope_source
from quantize.sources.gguf_repository import find, is_gguf_name
from quantize.sources.hub_errors import hub_errors

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
# Everything a conversion reads but weights, and nothing else: no .bin, no original/ folder. Of the weights,
# first the one file.
WANTED = ["*.json", SINGLE, "tokenizer.model", "spiece.model", "*.txt", "*.jinja", "README.md"]
# The terms, by the names of ``model_card.license_files``; the Hub's patterns tell capitals from small
# letters.
WANTED += [
    "LICENSE*",
    "LICENCE*",
    "MODEL_LICENSE*",
    "COPYING*",
    "NOTICE*",
    "Notice*",
    "license*",
    "USE_POLICY*",
]
UNWANTED = ["*/*"]
#: what lies in subfolders: how an embedding is pooled, named chat templates
INNER = ["1_Pooling/config.json", "additional_chat_templates/*.jinja"]


def resolve_model(model: str, *, code: bool = False) -> tuple[Path, str | None]:
    """-> (folder or GGUF file, commit of a Hub model or None). ``code``: with its Python, which is trusted.

    Errors: BadInput; StepFailed where the Hub cannot be reached.
    """
    path = typed_path(model)
    if path.is_dir():
        return path, None
    if is_gguf_name(model):
        file = find(model)
        file.fetch()
        path = file.path
    if path.is_file() and find_gguf(path):
        return path, None
    if path.exists():
        raise BadInput(
            f"{model}: is a file; give the checkpoint's folder, a GGUF file or a Hub id (org/name)"
        )
    if model.startswith(modelscope_source.PREFIX):
        revisions = []

        def fetch(wanted: list[str], unwanted: list[str]) -> Path:
            folder, revision = modelscope_source.snapshot(model, wanted, unwanted)
            revisions.append(revision)
            return folder

        return fetch_needed(fetch, code), revisions[0]
    if not HUB_ID.fullmatch(model) or model.startswith((".", "/", "~")):
        raise BadInput(f"{model}: no such folder, and not a Hub id (org/name[@revision])")
    return _snapshot(model, code)


def resolve_folder(model: str, *, code: bool = False) -> tuple[Path, str | None]:
    """``resolve_model`` for a library that opens only folders. Errors: BadInput for a GGUF file too."""
    path, revision = resolve_model(model, code=code)
    if path.is_file():
        raise BadInput(
            f"{model}: is a GGUF file, which llama.cpp opens; give a checkpoint's folder or a Hub id"
        )
    return path, revision


def fetch_needed(fetch: Callable[[list[str], list[str]], Path], code: bool = False) -> Path:
    """What a conversion reads, with only the weights that transformers loads: model.safetensors, else an
    index's shards.

    ``fetch`` gets the patterns of files to include and to exclude, and returns the folder. Errors: BadInput
    for a bad index.
    """
    folder = fetch([*WANTED, *(["*.py"] if code else [])], UNWANTED)
    if (folder / SINGLE).is_file():
        shards = []
    elif (folder / INDEX).is_file():
        shards = [glob.escape(name) for name in sorted(set(index_shards(folder / INDEX).values()))]
    else:
        return fetch(["*.safetensors"], [*UNWANTED, *(f"{name}*" for name in OTHERS)])
    return fetch([*shards, *INNER], [])


def _snapshot(model: str, code: bool) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download

    name, _, revision = model.partition("@")
    commit: list[str] = []  # the one that the first files were of

    def fetch(wanted: list[str], unwanted: list[str]) -> Path:
        pinned = commit[0] if commit else revision or None
        folder = Path(
            snapshot_download(name, revision=pinned, allow_patterns=wanted, ignore_patterns=unwanted)
        )
        commit.append(folder.name)
        return folder

    with hub_errors(name, revision or None):
        folder = fetch_needed(fetch, code)
    return folder, folder.name
