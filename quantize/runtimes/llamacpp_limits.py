"""What llama.cpp asserts about a file's metadata, checked first, with an error that names the field.

Only what holds for every architecture; llama.cpp checks the rest, in its own process (``llamacpp_apart``).
Source: llama.cpp src/llama-model.cpp (``load_hparams``), src/llama-hparams.h, ggml-cpu (``rms_norm``).
"""

import math

from quantize.errors import BadInput, StepFailed
from quantize.gguf.container.reader import GgufFile
from quantize.terminal import printable

MAX_LAYERS, MAX_EXPERTS = 512, 1024
EPSILONS = ("layer_norm_rms_epsilon", "layer_norm_epsilon", "group_norm_epsilon")


def check_metadata(file: GgufFile) -> None:
    """Errors: BadInput where it names no architecture; StepFailed, as where llama.cpp ends, for sizes that it
    ends over."""
    architecture = file.kvs.get("general.architecture")
    if not isinstance(architecture, str):
        raise BadInput(
            f"{file.path}: no general.architecture in its metadata, so not a language model's GGUF"
        )

    def demand(key: str, good: bool, expected: str) -> None:
        if not good:
            name, found = (
                printable(f"{architecture}.{key}", 80),
                printable(file.kvs.get(f"{architecture}.{key}"), 60),
            )
            raise StepFailed(f"{file.path}: {name} is {found}; llama.cpp expects {expected}")

    def integer(key: str) -> int | None:
        value = file.kvs.get(f"{architecture}.{key}")
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    if (layers := integer("block_count")) is not None:
        demand(
            "block_count",
            0 < layers <= min(MAX_LAYERS, len(file.tensors)),
            "the number of blocks that have tensors in the file",
        )
    if (experts := integer("expert_count")) is not None:
        demand("expert_count", 0 <= experts <= MAX_EXPERTS, f"at most {MAX_EXPERTS}")
        used = integer("expert_used_count") or 0
        # one for each layer
        if (used or experts) and not isinstance(file.kvs.get(f"{architecture}.expert_used_count"), list):
            demand("expert_used_count", 0 < used <= experts, f"1 to the {experts} of expert_count")
    for key in EPSILONS:
        value = file.kvs.get(f"{architecture}.attention.{key}")
        if isinstance(value, float):
            demand(f"attention.{key}", 0 <= value < math.inf, "a number that is not negative")
