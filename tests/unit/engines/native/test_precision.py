"""What a calibration pass computes in is what it says."""

import torch

from quantize.engines.native.precision import Arithmetic, arithmetic_of
from quantize.recipe import RunOptions


def test_float32_that_is_asked_for_is_exact_to_float32() -> None:
    arithmetic = arithmetic_of(RunOptions(device="cpu", dtype="float32"))
    assert arithmetic.name == "float32"
    torch.manual_seed(0)
    a, b = torch.randn(300, 400), torch.randn(500, 400)
    with arithmetic.used(None):
        found = torch.nn.functional.linear(a, b)
    exact = a.double() @ b.double().T
    assert float((found - exact).abs().max()) < 1e-4  # 400 products of about 1, in float32; bfloat16: 0.1


def test_the_name_says_whether_factors_are_rounded() -> None:
    arithmetic = arithmetic_of(RunOptions(device="cpu"))
    values = torch.full((512, 512), 1 + 2.0**-10)
    with arithmetic.used(None):
        exact = torch.equal(torch.nn.functional.linear(values, torch.eye(512)), values)
    assert ("bfloat16" in arithmetic.name) == (not exact)


def test_torch_s_settings_are_put_back() -> None:
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = torch.get_num_threads(), matmul.fp32_precision
    with Arithmetic("float32", onednn=True).used(1):
        assert torch.get_num_threads() == 1
        assert matmul.fp32_precision == "bf16"
    assert (torch.get_num_threads(), matmul.fp32_precision) == before
