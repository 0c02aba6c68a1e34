"""The packed formats, against bits laid out by hand and against packing done another way."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize.numerics import packing

BITS = (2, 3, 4, 8)


def stream(codes: np.ndarray, bits: int) -> np.ndarray:
    """The same stream by arithmetic on one large integer per column."""
    columns = []
    for column in codes.T:
        whole = sum(int(code) << (bits * position) for position, code in enumerate(column))
        words = len(column) * bits // 32
        columns.append([(whole >> (32 * word)) & 0xFFFFFFFF for word in range(words)])
    return np.array(columns, np.uint64).T.astype(np.uint32).view(np.int32)


@given(
    bits=st.sampled_from(BITS),
    blocks=st.integers(1, 3),
    columns=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_stream_of_bits(bits: int, blocks: int, columns: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (32 * blocks, columns)).astype(np.uint8)
    words = packing.pack_bits(codes, bits)
    assert words.dtype == np.int32
    assert words.shape == (blocks * bits, columns)
    np.testing.assert_array_equal(words, stream(codes, bits))
    np.testing.assert_array_equal(packing.unpack_bits(words, bits), codes)


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_are_packed_as_columns_are(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (5, 64), np.uint8)
    expected = packing.pack_bits(np.ascontiguousarray(codes.T), bits).T
    assert np.array_equal(packing.pack_rows(codes, bits), expected)
    with pytest.raises(ValueError, match="do not fill whole"):
        packing.pack_rows(codes[:, :3], bits)
    if bits == 4:
        with pytest.raises(ValueError, match=r"outside 0\.\.15"):
            packing.pack_rows(codes + 1, bits)


def test_four_bits_by_hand() -> None:
    assert packing.pack_bits(np.arange(8)[:, None], 4).view(np.uint32)[0, 0] == 0x76543210


def test_three_bits_straddle_words() -> None:
    codes = np.zeros((32, 1), np.uint8)
    codes[10] = 0b101  # bits 30, 31 and 32
    codes[21] = 0b110  # bits 63, 64 and 65
    words = packing.pack_bits(codes, 3).view(np.uint32)[:, 0]
    assert words.tolist() == [0b01 << 30, 0b1 | (0b0 << 31), 0b11]
    np.testing.assert_array_equal(packing.unpack_bits(words[:, None].view(np.int32), 3), codes)


def test_awq_order_by_hand() -> None:
    codes = np.arange(8)[None]
    word = packing.pack_awq(codes).view(np.uint32)[0, 0]
    assert word == 0x75316420  # from the most significant nibble: outputs 7 5 3 1 6 4 2 0
    np.testing.assert_array_equal(packing.unpack_awq(np.array([[word]], np.uint32).view(np.int32)), codes)


@given(rows=st.integers(1, 6), words=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_awq_round_trip(rows: int, words: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 16, (rows, 8 * words)).astype(np.uint8)
    packed = packing.pack_awq(codes)
    assert packed.shape == (rows, words)
    np.testing.assert_array_equal(packing.unpack_awq(packed), codes)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_weights(bits: int, act_order: bool) -> None:
    random = np.random.default_rng(bits)
    inputs, outputs, group = 128, 32, 32
    codes = random.integers(0, 1 << bits, (inputs, outputs))
    zeros = random.integers(1, (1 << bits) + 1, (inputs // group, outputs))
    scales = random.random((inputs // group, outputs)).astype(np.float16)
    index = np.arange(inputs, dtype=np.int32) // group
    if act_order:
        random.shuffle(index)
    qzeros = packing.pack_bits((zeros - 1).T, bits).T
    got = packing.dequantize_gptq(packing.pack_bits(codes, bits), qzeros, scales, index, bits, group)
    assert got.dtype == np.float32
    assert got.shape == (outputs, inputs)
    for i in range(0, inputs, 7):
        for o in range(0, outputs, 5):
            assert got[o, i] == np.float32(scales[index[i], o]) * (codes[i, o] - zeros[index[i], o])
    if not act_order:
        np.testing.assert_array_equal(
            got, packing.dequantize_gptq(packing.pack_bits(codes, bits), qzeros, scales, None, bits, group)
        )


@pytest.mark.parametrize("group", [32, -1])
def test_awq_weights(group: int) -> None:
    random = np.random.default_rng(1)
    inputs, outputs = 64, 16
    size = group if group > 0 else inputs
    codes = random.integers(0, 16, (inputs, outputs))
    zeros = random.integers(0, 16, (inputs // size, outputs))
    scales = random.random((inputs // size, outputs)).astype(np.float16)
    got = packing.dequantize_awq(packing.pack_awq(codes), packing.pack_awq(zeros), scales, group)
    index = np.arange(inputs) // size
    want = scales.astype(np.float32)[index] * (codes - zeros[index]).astype(np.float32)
    np.testing.assert_array_equal(got, want.T)


@pytest.mark.parametrize("bits", BITS)
def test_zero_points_of_zero_are_lifted(bits: int) -> None:
    """A zero point of 0 is stored as 1 with its codes one up, whatever it borrowed from its neighbour on
    export."""
    random = np.random.default_rng(bits)
    inputs, outputs, top = 64, 32, (1 << bits) - 1
    index = np.arange(inputs) // 32
    codes = random.integers(0, top + 1, (inputs, outputs))
    zeros = random.integers(1, top + 1, (2, outputs))
    zeros[0, 3] = zeros[1, 0] = zeros[1, 31] = 0
    qweight = packing.pack_bits(codes, bits)
    if bits == 3:
        exported = packing.pack_bits(((zeros - 1) % 8).T, bits).T
    else:  # the engine subtracts one from each field in a single 32-bit subtraction
        ones = np.uint32(sum(1 << shift for shift in range(0, 32, bits)))
        exported = (packing.pack_bits(zeros.T, bits).T.view(np.uint32) - ones).view(np.int32)
    new_weight, new_zeros, count = packing.lift_zero_points(
        qweight, np.ascontiguousarray(exported), index, bits
    )
    assert count == 3
    np.testing.assert_array_equal(packing.gptq_zeros(new_zeros, bits), np.maximum(zeros, 1))
    before, after = (
        codes - zeros[index],
        packing.unpack_bits(new_weight, bits).astype(int) - np.maximum(zeros, 1)[index],
    )
    lifted = (zeros == 0)[index]
    np.testing.assert_array_equal(before[~lifted], after[~lifted])
    np.testing.assert_array_equal(np.minimum(before[lifted], top - 1), after[lifted])


def test_nothing_to_lift_changes_nothing() -> None:
    qweight, qzeros = packing.pack_bits(np.full((8, 8), 3), 4), packing.pack_bits(np.full((8, 1), 7), 4).T
    same, zeros, count = packing.lift_zero_points(qweight, qzeros, np.zeros(8, np.int32), 4)
    assert (same is qweight, zeros is qzeros, count) == (True, True, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: packing.pack_bits(np.zeros((5, 1), int), 4), "do not fill whole"),
        (lambda: packing.pack_bits(np.full((8, 1), 16), 4), "outside 0..15"),
        (lambda: packing.pack_bits(np.full((8, 1), -1), 4), "outside 0..15"),
        (lambda: packing.unpack_bits(np.zeros((2, 1), np.int64), 4), "expected int32"),
        (lambda: packing.unpack_bits(np.zeros((2, 1), np.int32), 3), "multiple of 3"),
        (lambda: packing.unpack_bits(np.zeros((2, 1), np.int32), 5), "expected 2, 3, 4 or 8"),
        (lambda: packing.pack_awq(np.zeros((1, 12), int)), "eight to a word"),
    ],
)
def test_what_cannot_be_packed(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


def test_layers_that_contradict_themselves() -> None:
    qweight, qzeros, scales = (
        np.zeros((4, 8), np.int32),
        np.zeros((2, 1), np.int32),
        np.ones((2, 8), np.float16),
    )
    assert packing.dequantize_gptq(qweight, qzeros, scales, None, 4, 16).shape == (8, 32)
    with pytest.raises(ValueError, match="do not fit 8 outputs"):
        packing.dequantize_gptq(qweight, qzeros, scales[:, :4], None, 4, 16)
    with pytest.raises(ValueError, match="g_idx"):
        packing.dequantize_gptq(qweight, qzeros, scales, np.full(32, 2, np.int32), 4, 16)
    with pytest.raises(ValueError, match="g_idx"):
        packing.dequantize_gptq(qweight, qzeros, scales, np.zeros(31, np.int32), 4, 16)
    with pytest.raises(ValueError, match="do not fit"):
        packing.dequantize_awq(np.zeros((32, 1), np.int32), qzeros, scales, 32)
