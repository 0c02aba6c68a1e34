"""The pass over decoder layers on small models of very different kinds, against transformers' own forward."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_cases import SMALL

from quantize.calibration.collectors import BlockMoments, Hessians, MeanAbsolute, Sample
from quantize.calibration.layer_pass import LayerPass
from quantize.calibration.products import parameter_finder, watching
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import StepFailed
from quantize.hf.load import load_model

MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
DELTA = {
    "head_dim": 16, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma3_text": {"head_dim": 16, "sliding_window": 16, "layer_types": ["sliding_attention",
    "full_attention"]},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4},
    "gpt_neox": {},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "phi3": {"original_max_position_embeddings": 128},
    "mixtral": {**MOE, "sliding_window": None},
    "qwen3_moe": {**MOE, "head_dim": 16},
    "gpt_oss": {**MOE, "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "deepseek_v2": {
        "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 2,
        "first_k_dense_replace": 1, "moe_intermediate_size": 32, "kv_lora_rank": 32, "q_lora_rank": None,
        "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "head_dim": 8,
        "topk_method": "greedy",
    },
    "qwen3_next": {**MOE, **DELTA, "shared_expert_intermediate_size": 32},
    "qwen3_5_text": DELTA,
    "mamba": {"expand": 2, "state_size": 8, "time_step_rank": 8},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16,
    "mamba_n_groups": 1, "head_dim": 16},
    "jamba": {**MOE, "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
    "mamba_d_state": 8, "mamba_dt_rank": 8, "use_mamba_kernels": False},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "gemma3n_text": {
        "num_hidden_layers": 5, "head_dim": 16, "hidden_size_per_layer_input": 16, "laurel_rank": 8,
        "vocab_size_per_layer_input": 160, "num_kv_shared_layers": 2, "intermediate_size": 96,
        "activation_sparsity_pattern": None, "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention",
                        "full_attention"],
    },
}  # fmt: skip
ROWS = np.random.default_rng(0).integers(3, 160, (5, 24))
BATCH = 2 * ROWS.shape[1]


def make(kind: str, folder: Path) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **{**SMALL, **KINDS[kind]})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
            else:  # some scales begin at 0, and nothing would come through
                parameter.add_(0.1 * torch.rand(parameter.shape))
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")  # never opened here
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folders: dict[str, Path] = {}

    def get(kind: str) -> tuple[Checkpoint, Any]:
        if kind not in folders:
            folders[kind] = make(kind, tmp_path_factory.mktemp(kind))
        model = load_model(folders[kind], "float32", "cpu")
        if getattr(model, "_can_set_experts_implementation", lambda: False)():
            model.set_experts_implementation("eager")
        return Checkpoint.open(folders[kind]), model

    return get


def layer_names(model: Any) -> list[str]:
    lists = [(name, each) for name, each in model.named_modules() if isinstance(each, torch.nn.ModuleList)]
    name, found = next(each for each in lists if len(each[1]) == model.config.num_hidden_layers)
    return [f"{name}.{number}" for number in range(len(found))]


def a_pass(checkpoint: Checkpoint, model: Any, **more: Any) -> LayerPass:
    names = layer_names(model)
    parameters = [
        name
        for name, each in model.named_parameters()
        if each.dim() > 1 and name.startswith(tuple(f"{layer}." for layer in names))
    ]
    return LayerPass(checkpoint, ROWS, layers=names, parameters=parameters, **{"batch_tokens": BATCH, **more})


def whole(model: Any) -> torch.Tensor:
    with torch.no_grad():
        parts = [
            model.base_model(input_ids=torch.from_numpy(ROWS[at : at + 2]), use_cache=False)
            for at in range(0, len(ROWS), 2)
        ]
    return torch.cat([part.last_hidden_state for part in parts])


def states(run: LayerPass) -> torch.Tensor:
    return torch.cat([output.last_hidden_state for output in run.output])


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_that_changes_nothing_is_the_plain_forward(kind: str, made: Any, tmp_path: Path) -> None:
    """Bit by bit, whatever is gathered, and with every hidden state in files."""
    checkpoint, model = made(kind)
    run = a_pass(checkpoint, model, state_bytes=0, scratch=tmp_path)
    for layer in run:
        for group in layer.groups:
            layer.gather([group], Hessians())
    assert torch.equal(states(run), whole(model))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_hessians_are_those_of_the_inputs(kind: str, made: Any) -> None:
    """Of every linear, the float64 sum over what hooks see in the whole model; groups are gathered one by
    one, so that each stops early where it can."""
    checkpoint, model = made(kind)
    seen: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D":
            module.register_forward_pre_hook(lambda _, args, name=name: add(seen, f"{name}.weight", args[0]))
    whole(model)
    compared = 0
    for layer in a_pass(checkpoint, model):
        for group in layer.groups:
            hessians = Hessians()
            layer.gather([group], hessians)
            found = hessians.result()
            for name in group.parameters:
                if name in seen:
                    (hessian,) = found[group.leader[name]].values()
                    error = (hessian.sums.double() - seen[name]).abs().max() / seen[name].abs().max()
                    assert error < 1e-5, name  # 120 rows in float32
                    compared += 1
    assert compared >= len(layer_names(model))


def add(seen: dict[str, torch.Tensor], name: str, inputs: torch.Tensor) -> None:
    rows = inputs.reshape(-1, inputs.shape[-1]).double()
    seen[name] = seen.get(name, 0) + rows.T @ rows


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_experts_see_the_tokens_that_are_sent_to_them(kind: str, made: Any) -> None:
    checkpoint, model = made(kind)
    for layer in a_pass(checkpoint, model):
        (group,) = (g for g in layer.groups if any(name.endswith("gate_up_proj") for name in g.parameters))
        hessians = Hessians()
        layer.gather([group], hessians)
        (found,) = hessians.result().values()
        assert sum(each.count for each in found.values()) == ROWS.size * 2  # two experts a token
        # together they are the sum over all tokens of what enters the layer's experts, twice
        inputs: dict[str, torch.Tensor] = {}
        experts = model.get_submodule(group.parameters[0].rpartition(".")[0])
        handle = experts.register_forward_pre_hook(lambda _, args, inputs=inputs: add(inputs, "x", args[0]))
        whole(model)
        handle.remove()
        together = sum(each.sums.double() for each in found.values())
        torch.testing.assert_close(together, 2 * inputs["x"], rtol=1e-4, atol=1e-4)


def test_groups_of_a_llama(made: Any) -> None:
    checkpoint, model = made("llama")
    layer = next(iter(a_pass(checkpoint, model)))
    short = [[name.split(".")[-2] for name in group.parameters] for group in layer.groups]
    assert short == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    assert all(group.plain for group in layer.groups)


def test_experts_of_a_mixtral_are_groups(made: Any) -> None:
    checkpoint, model = made("mixtral")
    layer = next(iter(a_pass(checkpoint, model)))
    short = [[name.split(".")[-1] for name in group.parameters] for group in layer.groups if not group.plain]
    assert short == [["gate_up_proj"], ["down_proj"]]


def test_what_is_written_into_a_layer_reaches_the_next(made: Any) -> None:
    """Each layer's weights are replaced when its turn comes; what comes out is the replaced model's."""
    checkpoint, model = made("qwen3_moe")
    run = a_pass(checkpoint, model)
    names = dict(model.named_parameters())
    for layer in run:
        for name, parameter in layer.parameters.items():
            with torch.no_grad():
                parameter.mul_(0.5)
                names[name].mul_(0.5)
    assert torch.equal(states(run), whole(model))


def test_early_layers_decide_what_later_ones_see(made: Any) -> None:
    """A group is gathered on the outputs of groups that were replaced before it, within one layer."""
    checkpoint, model = made("llama")
    layer = next(iter(a_pass(checkpoint, model)))
    before = Hessians()
    layer.gather(layer.groups[1:2], before)
    value = next(name for name in layer.parameters if "v_proj" in name)
    with torch.no_grad():
        layer.parameters[value].mul_(2)
    after = Hessians()
    layer.gather(layer.groups[1:2], after)
    (one,), (two,) = ([*each.result().values()] for each in (before, after))
    torch.testing.assert_close(two[0].sums, 4 * one[0].sums)  # o_proj sees twice the values


def test_the_head_sees_what_the_model_gives_it(made: Any) -> None:
    checkpoint, model = made("gemma3_text")
    names = layer_names(model)
    run = LayerPass(checkpoint, ROWS, layers=names, parameters=["lm_head.weight"], head="lm_head")
    *_, last = run_through(run)
    assert last == "lm_head"
    assert len(names) == 2


def run_through(run: LayerPass) -> Iterator[str]:
    for layer in run:
        if layer.name == "lm_head":
            hessians = Hessians()
            layer.gather(layer.groups, hessians)
            assert hessians.result()["lm_head.weight"][0].count == ROWS.size
        yield layer.name


def test_nan_names_the_layer(made: Any, tmp_path: Path) -> None:
    """Finite weights, so large that products overflow in the second layer."""
    folder = make("llama", tmp_path)
    checkpoint = Checkpoint.open(folder)
    run = a_pass(checkpoint, made("llama")[1])
    layers = iter(run)
    next(layers)
    with torch.no_grad():
        next(layers).parameters["model.layers.1.mlp.down_proj.weight"].fill_(3e38)
    with pytest.raises(StepFailed, match=r"activations after model\.layers\.1 are NaN or Inf"):
        next(layers)


def test_absolute_means_and_samples(made: Any) -> None:
    checkpoint, model = made("llama")
    layer = next(iter(a_pass(checkpoint, model)))
    absolute, every, few, again = MeanAbsolute(), Sample(10**6), Sample(16, seed=3), Sample(16, seed=3)
    layer.gather(layer.groups[:1], absolute, every, few, again)
    (name,) = every.result()
    rows, chosen = every.result()[name][0], few.result()[name][0]
    assert rows.shape == (ROWS.size, 64)
    assert chosen.shape == (16, 64)
    moment = absolute.result()[name][0]
    assert moment.count == ROWS.size
    np.testing.assert_allclose(moment.sums, rows.double().abs().sum(0).numpy(), rtol=1e-6)
    assert torch.equal(chosen, again.result()[name][0])
    assert all(any(torch.equal(row, each) for each in rows) for row in chosen)
    other = next(iter(a_pass(checkpoint, model, batch_tokens=1)))
    one_by_one = Sample(16, seed=3)
    other.gather(other.groups[:1], one_by_one)
    torch.testing.assert_close(one_by_one.result()[name][0], chosen)  # whatever the batches


def test_threads_end_with_the_pass(made: Any) -> None:
    checkpoint, model = made("llama")
    before = set(threading.enumerate())
    run = iter(a_pass(checkpoint, model))
    next(run)
    mine = set(threading.enumerate()) - before
    assert len(mine) == 3  # batches
    run.close()  # type: ignore[attr-defined]
    assert not mine & set(threading.enumerate())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", [1 << 40, 40_000])
def test_products_that_are_not_computed_again_are_the_same(kind: str, budget: int, made: Any) -> None:
    """Each group is gathered and then written into, as GPTQ does; the budget of 40 kB holds some."""
    checkpoint, model = made(kind)
    plain, kept = a_pass(checkpoint, model), a_pass(checkpoint, model, repeated_bytes=budget)
    for one, other in zip(plain, kept, strict=True):
        for group, same in zip(one.groups, other.groups, strict=True):
            both = []
            for layer, mine in ((one, group), (other, same)):
                hessians = Hessians()
                layer.gather([mine], hessians)
                both.append(hessians.result())
                with torch.no_grad():
                    for name in mine.parameters:
                        layer.parameters[name].mul_(0.9)
            assert both[0].keys() == both[1].keys()
            for name, found in both[0].items():
                assert found.keys() == both[1][name].keys()
                assert all(torch.equal(each.sums, both[1][name][m].sums) for m, each in found.items())
    assert torch.equal(states(plain), states(kept))


def test_products_are_computed_once(made: Any) -> None:
    """A Llama layer multiplies with 7 matrices, once each although every group is gathered by itself."""
    checkpoint, model = made("llama")

    def counted(budget: int) -> dict[str, int]:
        layers = iter(a_pass(checkpoint, model, repeated_bytes=budget, batch_tokens=ROWS.size))
        layer = next(layers)
        _ = layer.groups
        counts: dict[str, int] = {}

        def see(name: str, inputs: Any, matrix: int) -> None:
            counts[name.split(".")[-2]] = counts.get(name.split(".")[-2], 0) + 1

        with watching(parameter_finder(layer.parameters), see):
            for group in layer.groups:
                layer.gather([group], Hessians())
            next(layers)
        return counts

    once = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), 1)
    again = {**once, "q_proj": 4, "k_proj": 4, "v_proj": 4, "o_proj": 3, "gate_proj": 2, "up_proj": 2}
    assert counted(1 << 40) == once
    assert counted(0) == again


def test_block_moments_are_the_blocks_of_hessians() -> None:
    """Rows in two batches, of two matrices; sums in float32 of 40 rows, in another order."""
    rows = torch.randn(40, 96, generator=torch.Generator().manual_seed(0))
    blocks, hessians = BlockMoments(32, frozenset({"experts"})), Hessians()
    for collector in (blocks, hessians):
        collector.add("experts", rows[:24].reshape(2, 12, 96), 1)
        collector.add("experts", rows[24:], 1)
        collector.add("experts", rows[:7], 0)
    for matrix in (0, 1):
        found, whole = blocks.result()["experts"][matrix], hessians.result()["experts"][matrix]
        assert found.count == whole.count
        for group in range(3):
            square = slice(32 * group, 32 * group + 32)
            assert torch.allclose(found.sums[group], whole.sums[square, square], rtol=1e-5, atol=1e-4)
