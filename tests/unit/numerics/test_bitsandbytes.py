"""The reader of bitsandbytes' weights against bitsandbytes itself."""

import numpy as np
import pytest

from quantize.hf.load import dequantize_flat
from quantize.numerics.bitsandbytes import (
    CODEBOOKS,
    dequantize_absmax,
    dequantize_blocks,
    dequantize_int8_rows,
    dynamic_map,
)

torch = pytest.importorskip("torch")
functional = pytest.importorskip("bitsandbytes.functional")


def test_codebooks_and_dynamic_map_are_the_librarys() -> None:
    for name, codebook in CODEBOOKS.items():
        np.testing.assert_allclose(
            codebook, functional.get_4bit_type(name, device="cpu").numpy(), rtol=0, atol=1e-7
        )
    np.testing.assert_allclose(dynamic_map(), functional.create_dynamic_map().numpy(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("shape", [(8, 64), (5, 96), (3, 50), (40, 512)])
def test_blocks_as_bitsandbytes_dequantizes_them(kind: str, double: bool, shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.05
    packed, state = functional.quantize_4bit(
        weight, quant_type=kind, compress_statistics=double, blocksize=64
    )
    theirs = dequantize_flat(packed, state).numpy()
    if double:
        nested = state.state2
        absmax = dequantize_absmax(
            state.absmax.numpy(), nested.absmax.numpy(), float(state.offset), nested.blocksize
        )
    else:
        absmax = state.absmax.numpy()
    ours = dequantize_blocks(packed.numpy(), absmax, CODEBOOKS[kind], state.blocksize, shape)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-8)
    assert np.linalg.norm(ours - weight.numpy()) < 0.2 * float(weight.norm())


def test_int8_rows_as_bitsandbytes_dequantizes_them() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(1)).half()
    data, scales, _ = functional.int8_vectorwise_quant(weight)
    ours = dequantize_int8_rows(data.numpy(), scales.numpy())
    np.testing.assert_allclose(ours, functional.int8_vectorwise_dequant(data, scales).numpy(), rtol=1e-6)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not hold 130 weights"):
        dequantize_blocks(np.zeros(65, np.uint8), np.ones(2, np.float32), CODEBOOKS["nf4"], 64, (130,))
