"""Scales that are moved from a layer's columns into what computes its inputs leave the model as it was, on a
small model of every decoder family; which layers have such a place is told from the weights alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoder_cases import CASES, make_decoder

from quantize.calibration.folding import Fold, apply_fold, find_folds
from quantize.calibration.layer_pass import Layer, LayerPass
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.hf.matrices import decoder_linears
from quantize.hf.names import empty_model
from quantize.sources.opening import open_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
#: largest difference of a hidden state over their deviation: float32 sums in another order, carried through
#: two layers of random weights, differ by up to 2e-5; a scale in the wrong place makes it 0.1 and more
ROUNDING = 2e-4
#: head width of the cases, by which fused projections are taken apart
HEAD = (16,)
#: model type -> matrices of its first layer whose scales go nowhere, by the end of their names
UNFOLDED: dict[str, set[str]] = {
    "llama": set(),
    "gemma3_text": set(),  # norms that add one
    "gpt2": {"mlp.c_proj.weight"},  # GELU before it; q, k and v fused and transposed
    "gpt_neox": {"mlp.dense_4h_to_h.weight"},  # q, k and v fused head by head
    "phi3": set(),  # gate and up fused
    "falcon": {"mlp.dense_4h_to_h.weight"},
    "nemotron": set(),  # a squared ReLU takes the square root of scales
    "olmo2": {f"self_attn.{x}_proj.weight" for x in "qkv"} | {"mlp.gate_proj.weight", "mlp.up_proj.weight"},
    "qwen3_moe": set(),
    "deepseek_v3": set(),
}


def _run(folder: Path, fold: bool) -> tuple[torch.Tensor, list[set[str]]]:
    """(what the decoder returns, by layer the quantized parameters that take no scales)."""
    checkpoint: Checkpoint = open_checkpoint(folder)
    decoder = decoder_linears(checkpoint)
    names = [name for name, _ in empty_model(checkpoint).named_parameters()]
    rows = np.random.default_rng(0).integers(2, 4000, (1, 64))
    through = LayerPass(checkpoint, rows, layers=decoder.layer_names, parameters=names)
    missing = []
    for layer in through:
        folds = find_folds(layer.parameters, layer.run, HEAD)
        _fold_at_random(layer, folds if fold else ())
        done = {name for each in folds for name in each.consumers}
        missing.append(
            {
                linear.parameter.removeprefix(f"{layer.name}.")
                for linear in decoder.layers[layer.index]
                if linear.parameter not in done
            }
        )
    output: Any = through.output[0]
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output.last_hidden_state
    return hidden, missing


def _fold_at_random(layer: Layer, folds: tuple[Fold, ...]) -> None:
    generator = torch.Generator().manual_seed(3)
    for fold in folds:
        by_row = torch.exp2(torch.rand(int(fold.origin.max()) + 1, generator=generator) * 2 - 1)
        with torch.no_grad():
            apply_fold(fold, by_row[fold.origin], layer.parameters)


@pytest.mark.parametrize(
    "kind", [kind if kind in UNFOLDED else pytest.param(kind, marks=pytest.mark.long) for kind in CASES]
)
def test_folding_leaves_the_model_as_it_was(kind: str, tmp_path: Path) -> None:
    folder = make_decoder(kind, tmp_path / "hf")
    plain, _ = _run(folder, fold=False)
    folded, missing = _run(folder, fold=True)
    print(kind, "not scaled:", *(sorted(names) or "nothing" for names in missing))
    assert not torch.equal(plain, folded)
    assert float((plain - folded).abs().max() / plain.std()) < ROUNDING
    if kind in UNFOLDED:
        assert missing[0] == UNFOLDED[kind]


def test_a_layer_of_the_same_kind_is_tried_with_the_folds_of_the_first(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_decoder("llama", tmp_path / "hf"))
    decoder = decoder_linears(checkpoint)
    names = [name for name, _ in empty_model(checkpoint).named_parameters()]
    rows = np.random.default_rng(0).integers(2, 4000, (1, 64))
    layers = list(decoder.layer_names)
    for layer in LayerPass(checkpoint, rows, layers=layers, parameters=names):
        folds = find_folds(layer.parameters, layer.run, HEAD)
        runs = 0

        def counted(layer: Layer = layer) -> Any:
            nonlocal runs
            runs += 1
            return layer.run()

        again = find_folds(layer.parameters, counted, HEAD, known=folds)
        assert [fold.consumers for fold in again] == [fold.consumers for fold in folds]
        assert runs == 1 + len(folds)
        wrong = [Fold(folds[0].place, folds[0].consumers, folds[0].origin.flip(0)), *folds[1:]]
        found = find_folds(layer.parameters, layer.run, HEAD, known=wrong)
        assert torch.equal(found[0].origin, folds[0].origin)


def test_what_is_also_used_otherwise_takes_no_scales() -> None:
    """Inputs that go round the layer too: scaling the norm would change what is added."""
    torch.manual_seed(0)
    weights = {"norm.weight": torch.rand(16) + 0.5, "up.weight": torch.randn(16, 16)}
    hidden = torch.randn(8, 16)

    def around() -> torch.Tensor:
        normed = hidden * weights["norm.weight"]
        return normed + torch.nn.functional.linear(normed, weights["up.weight"])

    def through() -> torch.Tensor:
        normed = hidden * weights["norm.weight"]
        return hidden + torch.nn.functional.linear(normed, weights["up.weight"])

    assert find_folds(weights, around) == ()
    (fold,) = find_folds(weights, through)
    assert fold.place.names == ("norm.weight",)
    assert fold.origin.tolist() == list(range(16))
