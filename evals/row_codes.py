"""A row of log-probabilities as the reference's cache keeps it.

16 bits for each vocabulary entry: the log-probability on a grid from the row's maximum to 40
nats below it (or to its minimum, where that is nearer). What lies lower has a probability under 4e-18 and
adds nothing that float64 could see. A grid step is at most 6.1e-4 nats, and the divergence of the reference
from its own cache about step^2 / 24, 1.6e-8. Besides the codes a row keeps 20 bytes: its range, ln p of the
true token in float32, its most probable token and that one's probability.
"""

from typing import TYPE_CHECKING

import numpy as np

from evals.kernels import as_tensor

if TYPE_CHECKING:
    import torch

RANGE_NATS = 40.0

ROW_BYTES = 20

_HALF = 32768

ROW = np.dtype(
    [
        ("top_log_prob", "<f4"),
        ("step", "<f4"),
        ("true_log_prob", "<f4"),
        ("top", "<i4"),
        ("confidence", "<f4"),
    ]
)

assert ROW.itemsize == ROW_BYTES


def analyse(logits: np.ndarray, targets: np.ndarray) -> "tuple[torch.Tensor, np.ndarray]":
    """float32 logits (n, v) -> log-probabilities (n, v) float32 and what a row keeps besides codes."""
    import torch

    x = as_tensor(logits)
    top, index = x.max(1)
    total = (x - top[:, None]).exp_().sum(1, dtype=torch.float64)
    normalizer = top.double() + total.log()
    rows = np.empty(len(logits), ROW)
    chosen = x.gather(1, torch.from_numpy(np.ascontiguousarray(targets))[:, None])[:, 0].double()
    rows["true_log_prob"] = (chosen - normalizer).float().numpy()
    rows["top"] = index.numpy()
    rows["top_log_prob"] = (top.double() - normalizer).float().numpy()
    rows["confidence"] = (1 / total).float().numpy()
    return x - normalizer[:, None].float(), rows


def encode(log_probs: "torch.Tensor", rows: np.ndarray) -> np.ndarray:
    """-> int16 codes (n, v); fills ``rows['step']``. Non-finite rows get codes that decode to NaN."""
    import torch

    top = torch.from_numpy(rows["top_log_prob"].copy())
    low = torch.maximum(log_probs.amin(1), top - RANGE_NATS)
    step = (top - low).clamp_min(1e-30) / 65535
    rows["step"] = step.numpy()
    codes = ((log_probs - low[:, None]) / step[:, None]).clamp_(0, 65535).round_() - _HALF
    return np.asarray(torch.nan_to_num(codes).to(torch.int16).numpy())


def decode(codes: np.ndarray, rows: np.ndarray) -> "torch.Tensor":
    """int16 codes (n, v) -> float32 (n, v) log-probabilities, within half a step."""
    import torch

    step = torch.from_numpy(rows["step"].copy())
    low = torch.from_numpy(rows["top_log_prob"].copy()) - step * 65535
    return torch.from_numpy(codes).float().add_(_HALF).mul_(step[:, None]).add_(low[:, None])
