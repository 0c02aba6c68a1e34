"""A small artifact, committed the way ``convert`` commits one."""

from pathlib import Path
from typing import Any

from quantize.artifact.artifact import (
    Artifact,
    Check,
    Manifest,
    Note,
    Source,
    Verification,
    commit,
    hash_files,
)
from quantize.artifact.attestation import attest
from quantize.staging import staging


def make_artifact(folder: Path, recipe: str = "gguf-q4_k_m", more: bytes = b"", **changes: Any) -> Artifact:
    """A committed folder with a few bytes for weights, and ``more``: publishing looks at manifest, names and
    hashes only."""
    method = recipe.partition("-")[0]
    with staging(folder) as stage:
        if method == "gguf":
            (stage / f"small-{recipe[5:].upper()}.gguf").write_bytes(b"GGUF" + recipe.encode() + more)
        else:
            (stage / "model.safetensors").write_bytes(recipe.encode() + more)
            (stage / "config.json").write_text("{}")
        fields: dict[str, Any] = {
            "recipe": {"method": method}, "recipe_short": recipe,
            "recipe_digest": recipe.encode().hex().ljust(64, "0"),
            "source": Source(id="org/small", revision="abc123", digest="12" * 32, dtype="BF16",
            architecture="LlamaForCausalLM",
                             model_type="llama", parameters=4_200_000, license="apache-2.0"),
            "tool": {"name": "quantwright", "version": "0.1.0"}, "engine": "engine 1.0",
            "libraries": {"torch": "2.13.0"},
            "files": hash_files(stage), "weight_bytes": 12, "bits_per_weight": 4.9, "runtime": "llamacpp",
            "loads_in": ("llama.cpp",),
            "notes": (Note(tensor="a.weight", what="kept as F32", why="its rows are <short>"),),
            "verification": Verification(level="full", runtime="llamacpp", reader="gguf (numpy)",
                                         checks=(Check(name="logits", passed=True, value=0.001,
                                         tolerance=0.02),)),
        }  # fmt: skip
        artifact = commit(stage, folder, Manifest(**{**fields, **changes}), force=False)
    attest(artifact)
    return artifact
