"""A GGUF artifact of a few bytes with a vocabulary, a chat template and settings for sampling."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from sample_artifact import make_artifact

from quantize.artifact.artifact import MANIFEST, Artifact, hash_files, read_manifest

TOKENS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "a", "b", "<|eot|>"]
KINDS = [2, 3, 3, 3, 3, 1, 1, 3]


def write_gguf(path: Path, template: str = "", add_bos: bool = False, **settings: Any) -> None:
    """``settings``: other metadata, dots as double underscores."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(settings.pop("context", 32768))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(settings.pop("tokens", TOKENS))
    writer.add_token_types(settings.pop("kinds", KINDS))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(settings.pop("eos", 2))
    writer.add_add_bos_token(add_bos)
    if template:
        writer.add_chat_template(template)
    for name, value in settings.items():
        key = name.replace("__", ".")
        (writer.add_int32 if isinstance(value, int) else writer.add_float32)(key, value)
    writer.add_tensor("token_embd.weight", np.zeros((8, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_artifact(folder: Path, template: str = "", add_bos: bool = False, **settings: Any) -> Artifact:
    """``file``: its name; ``source``: replaces fields of the manifest's source."""
    file, source = settings.pop("file", "small-Q4_K_M.gguf"), settings.pop("source", {})
    made = make_artifact(folder)
    (folder / "small-Q4_K_M.gguf").unlink()
    write_gguf(folder / file, template, add_bos, **settings)
    return again(made, source=made.manifest.source.model_copy(update=source))


def again(artifact: Artifact, **changes: Any) -> Artifact:
    """With a manifest of the files that lie there now, and ``changes`` in it."""
    files = hash_files(artifact.folder)
    manifest = artifact.manifest.model_copy(update={"files": files, **changes})
    (artifact.folder / MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")
    return Artifact(artifact.folder, read_manifest(artifact.folder / MANIFEST))
