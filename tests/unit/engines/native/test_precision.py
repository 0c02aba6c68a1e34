"""What a calibration pass computes in is what it says."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantize.engines.native.precision import Arithmetic, arithmetic_of
from quantize.hf.products import float32_attention, multiplies_bfloat16
from quantize.recipe import RunOptions
from quantize.sources.opening import open_checkpoint


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


def test_a_model_as_it_is_runs_in_its_own_bfloat16_where_the_processor_has_that(
    demo_checkpoint: Path, make_checkpoint: Callable[..., Path]
) -> None:
    folder = make_checkpoint(num_hidden_layers=1)
    weights = load_file(folder / "model.safetensors")
    save_file({name: each.float() for name, each in weights.items()}, folder / "model.safetensors")
    bfloat16, float32, auto = (
        open_checkpoint(demo_checkpoint),
        open_checkpoint(folder),
        RunOptions(device="cpu"),
    )
    assert bfloat16.dtype == "BF16"
    assert (arithmetic_of(auto, bfloat16).name == "bfloat16") == multiplies_bfloat16()
    assert arithmetic_of(auto, float32) == arithmetic_of(auto)
    assert arithmetic_of(RunOptions(device="cpu", dtype="float32"), bfloat16).dtype == "float32"


@pytest.mark.parametrize("masked", [False, True])
def test_attention_over_bfloat16_is_that_of_float32_rounded(masked: bool) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 70, 16).to(torch.bfloat16) for _ in range(3))
    mask = torch.randn(70, 70).to(torch.bfloat16) if masked else None
    asked = {"attn_mask": mask, "is_causal": not masked}
    with float32_attention():
        found = torch.nn.functional.scaled_dot_product_attention(query, key, value, **asked)
    scores = query.double() @ key.double().transpose(-1, -2) / 4
    scores += mask.double() if mask is not None else torch.full((70, 70), -torch.inf).triu(1)
    exact = scores.softmax(-1) @ value.double()
    assert found.dtype == torch.bfloat16
    assert float((found.double() - exact).abs().max()) < 2.0**-8 * float(exact.abs().max())
