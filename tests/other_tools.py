"""What other tools keep or take, for tests that compare with them."""

import json
from pathlib import Path

import numpy as np
import yaml

from evals.local_task import LocalTask


def emulate_llamacpp_base(logits: np.ndarray) -> np.ndarray:
    """What llama-perplexity keeps of the reference: float32 logits (n, v) -> float32 log-probabilities (n, v)
    in 16 bits, everything more than 16 nats below the maximum set to that. Source: log_softmax(..., uint16_t
    *) in perplexity.cpp.
    """
    top = logits.max(1, keepdims=True)
    low = np.maximum(logits.min(1, keepdims=True), top - np.float32(16))
    total = np.exp(logits - top, dtype=np.float32).sum(1, dtype=np.float64, keepdims=True)
    log_total = np.log(total).astype(np.float32)
    scale = (top - low) / np.float32(65535)
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.where(logits > low, np.rint((logits - low) / scale), 0).astype(np.float32)
    return np.asarray(scale * codes + (low - top - log_total), np.float32)


def export_yaml(task: LocalTask, folder: Path) -> Path:
    """Write ``<name>.yaml`` and ``<name>.jsonl`` with which plain lm-eval (--include_path) runs the same
    task."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{task.name}.jsonl"
    data.write_text(
        "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in task.items), encoding="utf-8"
    )
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data.resolve())}}}
    path = folder / f"{task.name}.yaml"
    path.write_text(yaml.safe_dump(task.config() | source, sort_keys=False), encoding="utf-8")
    return path
