"""The reader of optimum-quanto's weights against optimum-quanto itself, and its parts against their
definitions."""

import numpy as np
import pytest

from quantize.numerics.quanto import FLOAT8_E4M3FN, dequantize_groups, dequantize_rows, unpack_rows


def test_rows_are_spread_over_bit_fields() -> None:
    packed = np.array([[0xE4], [0x1B]], dtype=np.uint8)  # fields of 2 bits, lowest first: 0 1 2 3 and 3 2 1 0
    assert unpack_rows(packed, 2, 8).ravel().tolist() == [0, 3, 1, 2, 2, 1, 3, 0]
    assert unpack_rows(packed, 4, 3).ravel().tolist() == [4, 11, 14]  # the last byte half used


def test_rows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot hold 5 rows"):
        unpack_rows(np.zeros((2, 8), np.uint8), 4, 5)


def test_float8_table_is_torchs() -> None:
    import torch

    theirs = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(FLOAT8_E4M3FN, theirs)


@pytest.mark.parametrize(
    ("bits", "shape"), [(4, (6, 256)), (2, (6, 256)), (4, (5, 96)), (2, (3, 160)), (4, (7, 40))]
)
def test_groups_of_quanto_come_back_within_a_step(bits: int, shape: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("optimum.quanto")
    from optimum.quanto import MaxOptimizer, qint2, qint4
    from optimum.quanto.tensor.weights import quantize_weight

    qtype = {4: qint4, 2: qint2}[bits]
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(bits))
    group = next((g for g in (128, 96, 64, 32) if shape[1] > 128 and shape[1] % g == 0), None)
    scale, shift = MaxOptimizer()(weight, qtype=qtype, axis=0, group_size=group)
    quantized = quantize_weight(weight, qtype, 0, scale, shift, group, optimized=False)
    ours = dequantize_groups(quantized._data._data.numpy(), scale.numpy(), shift.numpy(), bits, shape)
    rows = torch.arange(weight.numel() // (group or shape[1]))
    codes = unpack_rows(quantized._data._data.numpy(), bits, len(rows)).reshape(shape)
    step = scale.repeat_interleave(group or shape[1], dim=1).reshape(shape).numpy()
    assert codes.max() == 2**bits - 1
    # Every weight is within half a step of its source (a rounded zero point can add as much again).
    assert (np.abs(ours - weight.numpy()) <= step * 1.001).all()
    assert np.abs(ours - weight.numpy()).mean() < step.mean() * 0.3


@pytest.mark.parametrize("kind", ["qint8", "qfloat8_e4m3fn"])
def test_rows_as_quanto_dequantizes_them(kind: str) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("optimum.quanto")
    from optimum.quanto import AbsmaxOptimizer, qtypes
    from optimum.quanto.tensor.weights import quantize_weight

    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(3))
    scale = AbsmaxOptimizer()(weight, qtype=qtypes[kind], axis=0)
    quantized = quantize_weight(weight, qtypes[kind], 0, scale, optimized=False)
    data = quantized._data if kind == "qint8" else quantized._data.view(torch.uint8)
    ours = dequantize_rows(data.numpy(), quantized._scale.numpy())
    np.testing.assert_array_equal(ours, quantized.dequantize().numpy())
