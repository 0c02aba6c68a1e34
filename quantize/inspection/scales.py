"""What is wrong with the scales and zero points of a folder, from the stored numbers alone: no source is
needed. One array in memory at a time."""

from pathlib import Path

import numpy as np

from quantize.checkpoint.tensors import StoredTensors
from quantize.dtypes import FLOATS
from quantize.formats.gptq import GptqFormat
from quantize.formats.packed import PackedFormat
from quantize.inspection.findings import Findings
from quantize.inspection.tensors import owner_of
from quantize.numerics.packing import gptq_zeros

#: endings of arrays by which weights are multiplied, or that such are divided by
SCALES = (
    ".scales", ".weight_scale", ".weight_scale_inv", ".weight_scale_2", ".weight_global_scale", ".SCB",
    ".absmax", ".nested_absmax", "._scale", "_scale_inv", "_scales", "_scale",
)  # fmt: skip
#: endings of those among them that belong to activations
OF_ACTIVATIONS = ("input_scale", "output_scale", "input_global_scale")
UNINITIALISED = "uninitialised scales"
OFF_BY_ONE = "zero points off by one"
FOR_CPU = "packed for a CPU's kernel"


def scale_faults(folder: Path, findings: Findings) -> None:
    """Scales that nobody has set: not finite, all zero, or all one; and 4-bit blocks of bitsandbytes that a
    forward pass on a CPU has packed for its kernel."""
    stored = StoredTensors(folder)
    for name, info in stored.info.items():
        owner = owner_of(name, stored.info)
        if not owner or not name.endswith(SCALES) or name.endswith(OF_ACTIVATIONS):
            continue
        weight = owner.removesuffix(".qweight").removesuffix(".weight_packed").removesuffix("._data")
        weight = weight.removesuffix("._weight_qdata")
        weight = weight if weight.endswith("weight") or weight == owner else f"{weight}.weight"
        if name.endswith(".absmax") and len(info.shape) == 2:
            findings.add(
                FOR_CPU,
                weight,
                f"absmax has shape {list(info.shape)}, where blocks have one axis: it was saved after a "
                "forward pass on a CPU, which packs codes and scales anew; quantize again and save before "
                "running it",
            )
            continue
        if info.dtype not in FLOATS:
            continue
        values = stored.float32(name)
        if wrong := _unset(values):
            findings.add(UNINITIALISED, weight, f"{name.rpartition('.')[2]} {wrong}")


def _unset(values: np.ndarray) -> str:
    if not values.size:
        return ""
    bad = int(values.size - np.isfinite(values).sum())
    if bad:
        return f"has {bad:,} of {values.size:,} values that are NaN or Inf"
    if not values.any():
        return f"is zero everywhere ({values.size:,} values)"
    if values.size > 1 and bool((values == 1).all()):
        return f"is 1 everywhere ({values.size:,} values)"
    return ""


def zero_point_faults(folder: Path, format: PackedFormat, findings: Findings) -> None:
    """Symmetric GPTQ, whose zero points are all in the middle: one off is the other version of the format."""
    if not isinstance(format, GptqFormat) or not format.symmetric:
        return
    stored = StoredTensors(folder)
    for linear in format.linears:
        grid, name = format.grid_of(linear), f"{linear.name}.qzeros"
        if name not in stored or not grid.symmetric:
            continue
        zeros, middle = gptq_zeros(stored.raw(name), grid.bits, format.less), 1 << (grid.bits - 1)
        off = sorted(set(np.unique(zeros).tolist()) - {middle})
        if off and set(off) <= {middle - 1, middle + 1} and middle not in zeros:
            why = (
                f"zero points read as {off[0]}, those of a symmetric grid of {grid.bits} bits are {middle}; "
                f"its config says that they are GPTQ's v{format.version}"
            )
            findings.add(OFF_BY_ONE, linear.source, why)
