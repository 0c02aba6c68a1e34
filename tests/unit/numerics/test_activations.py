"""Rounding of activations, against gguf-py's Q8_0 quantizer and a plain float64 loop of Q8_K."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from gguf import GGMLQuantizationType  # noqa: E402
from gguf.quants import dequantize, quantize  # noqa: E402

from quantize.numerics.activations import round_activations  # noqa: E402


def heavy_tailed(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(0).standard_t(3, (rows, columns)).astype(np.float32)


def test_q8_0_equals_the_block_quantizer() -> None:
    x = heavy_tailed(7, 96)
    x[2] = 0  # a block of zeros has no scale
    expected = dequantize(quantize(x, GGMLQuantizationType.Q8_0), GGMLQuantizationType.Q8_0)
    got = round_activations(torch.from_numpy(x), "q8_0").numpy()
    # The quantizer multiplies by the reciprocal of the scale: a value half-way between two steps may go
    # either way.
    step = np.abs(x).reshape(7, 3, 32).max(-1).repeat(32, -1) / 127
    assert np.abs(got - expected).max() <= step.max()
    assert (got == expected).mean() > 0.999


def test_q8_k_equals_a_float64_loop() -> None:
    x = heavy_tailed(3, 512)
    got = round_activations(torch.from_numpy(x), "q8_k").numpy()
    for row in range(3):
        for block in range(2):
            part = x[row, block * 256 : block * 256 + 256].astype(np.float64)
            scale = np.abs(part).max() / 127
            expected = np.round(part / scale) * scale
            assert (
                np.abs(got[row, block * 256 : block * 256 + 256] - expected).max() < 1e-5 * np.abs(part).max()
            )


@pytest.mark.parametrize(("kind", "dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_halves(kind: str, dtype: torch.dtype) -> None:
    x = torch.from_numpy(heavy_tailed(2, 5))
    assert torch.equal(round_activations(x, kind), x.to(dtype).float())


def of_the_library(scheme: str, x: "torch.Tensor") -> "torch.Tensor":
    """What the library does to activations, whatever the weights."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization import QuantizationStatus
    from compressed_tensors.quantization.lifecycle.forward import forward_quantize
    from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme

    module = torch.nn.Linear(4, 4)
    module.input_global_scale = torch.tensor([64.0]) if scheme == "NVFP4" else None
    module.quantization_status = QuantizationStatus.COMPRESSED
    return forward_quantize(
        module, x.clone(), "input", preset_name_to_scheme(scheme, ["Linear"]).input_activations
    )


@pytest.mark.parametrize("shape", [(2, 7, 256), (9, 256)])
@pytest.mark.parametrize(
    ("scheme", "kind"),
    [
        ("FP8_DYNAMIC", "fp8_token"),
        ("W8A8", "int8_token"),
        ("FP8_BLOCK", "fp8_g128"),
        ("MXFP4", "mxfp4_g32"),
        ("NVFP4", "nvfp4_g16_64.0"),
    ],
)
def test_activations_of_compressed_tensors(scheme: str, kind: str, shape: tuple[int, ...]) -> None:
    """Bit by bit. Sizes from 2^-20 up, a token of zeros."""
    x = torch.from_numpy(heavy_tailed(int(np.prod(shape[:-1])), 256)).reshape(shape)
    x[..., 0, :] = 0
    x[..., 1, :] *= 2.0**-20
    x[..., 2, 5] = 1e4
    assert torch.equal(round_activations(x, kind), of_the_library(scheme, x))


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_each_token_by_itself(kind: str) -> None:
    x = torch.from_numpy(heavy_tailed(5, 64))
    alone = [round_activations(row[None, None], f"{kind}_token")[0] for row in x]
    assert torch.equal(round_activations(x, f"{kind}_row"), torch.cat(alone))
