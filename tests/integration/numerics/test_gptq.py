"""GPTQ on weights and activations of a trained model: the demo's."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from quantize.calibration.texts import held_out_text  # noqa: E402
from quantize.numerics.gptq import solve  # noqa: E402
from quantize.numerics.grids import Grid  # noqa: E402
from quantize.numerics.rtn import round_to_nearest  # noqa: E402

GRIDS = [Grid(4, 128, True), Grid(3, 64, True), Grid(2, 32, False, 1), Grid(8, -1, True)]
TOKENS = 4096


@pytest.fixture(scope="module")
def linears(demo_checkpoint: Path) -> "dict[str, tuple[torch.Tensor, torch.Tensor]]":
    """Weights and mean second moments of inputs, by name, of every linear of the demo's decoder."""
    model = transformers.AutoModelForCausalLM.from_pretrained(demo_checkpoint, dtype=torch.float32)
    decoder = model.get_decoder().layers
    found = {}
    for name, module in decoder.named_modules():
        if isinstance(module, torch.nn.Linear):
            moments = torch.zeros(module.in_features, module.in_features)
            found[name] = (module.weight.detach(), moments)

            def add(module: object, inputs: tuple, moments: "torch.Tensor" = moments) -> None:
                rows = inputs[0].reshape(-1, inputs[0].shape[-1])
                moments.addmm_(rows.T, rows, alpha=1 / TOKENS)

            module.register_forward_pre_hook(add)
    ids = (
        Tokenizer.from_file(str(demo_checkpoint / "tokenizer.json")).encode(held_out_text()[: 8 * TOKENS]).ids
    )
    with torch.no_grad():
        model(torch.tensor(ids[:TOKENS]).reshape(-1, 512))
    return found


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_no_layer_is_worse_than_rounded_to_nearest(
    linears: "dict[str, tuple[torch.Tensor, torch.Tensor]]", grid: Grid
) -> None:
    """By the error that GPTQ minimises, undamped, without exception: with what follows GPTQ proper, and GPTQ
    proper alone. Together they are at most 0.8 of rounding's."""
    assert len(linears) == 28
    totals = torch.zeros(3)
    for name, (weight, moments) in linears.items():
        nearest = round_to_nearest(weight, grid, moments.diagonal())
        proper, refined = (solve(weight, moments, grid, damping=0.01, refinements=n).codes for n in (0, 2))
        errors = [codes.values() - weight for codes in (nearest, proper, refined)]
        losses = torch.stack([((error @ moments) * error).sum() for error in errors])
        assert losses[1] <= losses[0], name
        assert losses[2] <= losses[0], name
        totals += losses / losses[0]
    assert totals[1] < 0.8 * totals[0]
    assert totals[2] < totals[1]
