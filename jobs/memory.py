"""What the processes of steps hold, where this machine has not measured it yet."""

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.methods.base import Costs

VERIFY_BASE_BYTES = 540 << 20  # comparing logits loads torch and transformers
TASKS_BYTES = 120 << 20  # lm-eval and datasets
FLOORS_BYTES = 200 << 20  # a second runtime
#: Of the weights as stored. What verification maps of source and artifact counts as held, though the system
#: may take it back.
VERIFY_STORED_COPIES = 0.7
CALIBRATION_TOKENS = 32_768  # of ``Costs.states``


def conversion_memory(checkpoint: Checkpoint, costs: Costs, verify: str) -> int:
    """Peak of the converting process, verification included, which goes layer by layer."""
    largest = max((info.parameters for info in checkpoint.tensors.values()), default=0)
    layers = int(checkpoint.config.get("num_hidden_layers") or 1)
    layer = checkpoint.parameters // max(layers, 1)
    full = verify == "full"
    stored = sum(info.size_bytes for info in checkpoint.tensors.values())
    copies = costs.stored_copies
    held = 4 * costs.copies * checkpoint.parameters if copies is None else copies * stored
    base = max(costs.base_bytes, VERIFY_BASE_BYTES if full else 0)
    text = checkpoint.config.get("text_config")
    hidden = int((text if isinstance(text, dict) else checkpoint.config).get("hidden_size") or 0)
    states = int(4 * CALIBRATION_TOKENS * hidden * costs.states)
    return int(
        base + states + max(held, VERIFY_STORED_COPIES * stored if full else 0) + 12 * max(largest, layer)
    )


def serving_memory(costs: Costs, held_bytes: int) -> int:
    """Of a process that measures speeds; ``held_bytes``: of weights."""
    return costs.bench_bytes + held_bytes


def comparing_memory(costs: Costs, held_bytes: int, vocabulary: int, tasks: bool) -> int:
    """Of a process that compares an artifact with a reference, logits included."""
    logits = 512 * vocabulary * 4 * 3
    return costs.eval_bytes + held_bytes + logits + (TASKS_BYTES if tasks else 0)


def floors_memory(weights: int) -> int:
    """What the floors need beside the reference: it again, as an F32 GGUF and in bfloat16."""
    return FLOORS_BYTES + 6 * weights
