"""What the processes of steps hold, where this machine has not measured it yet."""

from quantize.checkpoint.checkpoint import Checkpoint

#: Of a converting process before any weight, engines loaded. What has been measured here comes before it
#: (``Experience.peak_bytes``).
BASE_BYTES = {
    "gguf": 90 << 20,
    "dense": 90 << 20,
    "gptq": 950 << 20,
    "awq": 1050 << 20,
    "quanto": 560 << 20,
    "bnb": 560 << 20,
}
BASE_DEFAULT = 650 << 20
VERIFY_BASE_BYTES = 540 << 20  # comparing logits loads torch and transformers
#: Of a process that opens an artifact, and of one that compares it with a reference.
BENCH_BASE_BYTES = {"gguf": 90 << 20, "gptq": 700 << 20, "awq": 700 << 20}
BENCH_BASE_DEFAULT = 500 << 20
TASKS_BYTES = 120 << 20  # lm-eval and datasets
FLOORS_BYTES = 200 << 20  # a second runtime
EVAL_BASE_BYTES = {"gptq": 760 << 20, "awq": 760 << 20}
#: Copies of the weights that are held at once: in float32 by engines that compute, as stored (mapped files
#: counted) by those that only round. GGUF streams; what verification maps of source and artifact counts as
#: held, though the system may take it back.
COPIES = {"gptq": 1.6, "awq": 1.8}
STORED_COPIES = {"gguf": 0.0, "dense": 0.0, "quanto": 2.8, "bnb": 1.8}
VERIFY_STORED_COPIES = 0.7


def conversion_memory(checkpoint: Checkpoint, method: str, verify: str) -> int:
    """Peak of the converting process, verification included, which goes layer by layer."""
    largest = max((info.parameters for info in checkpoint.tensors.values()), default=0)
    layers = int(checkpoint.config.get("num_hidden_layers") or 1)
    layer = checkpoint.parameters // max(layers, 1)
    full = verify == "full"
    stored = sum(info.size_bytes for info in checkpoint.tensors.values())
    copies = STORED_COPIES.get(method)
    held = 4 * COPIES.get(method, 1.5) * checkpoint.parameters if copies is None else copies * stored
    base = max(BASE_BYTES.get(method, BASE_DEFAULT), VERIFY_BASE_BYTES if full else 0)
    return int(base + max(held, VERIFY_STORED_COPIES * stored if full else 0) + 12 * max(largest, layer))


def serving_memory(method: str, held_bytes: int) -> int:
    """Of a process that measures speeds; ``held_bytes``: of weights."""
    return BENCH_BASE_BYTES.get(method, BENCH_BASE_DEFAULT) + held_bytes


def comparing_memory(method: str, held_bytes: int, vocabulary: int, tasks: bool) -> int:
    """Of a process that compares an artifact with a reference, logits included."""
    logits = 512 * vocabulary * 4 * 3
    return EVAL_BASE_BYTES.get(method, BASE_DEFAULT) + held_bytes + logits + (TASKS_BYTES if tasks else 0)


def floors_memory(weights: int) -> int:
    """What the floors need beside the reference: it again, as an F32 GGUF and in bfloat16."""
    return FLOORS_BYTES + 6 * weights
