"""The loop over layers that GPTQ and AWQ share, with GPTQ in it: against the same by hand on a whole model,
interrupted, with little memory, and on what it must refuse."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.engines.native.gptq import GptqSettings, gptq_solver
from quantize.engines.native.layers import quantized_layers
from quantize.engines.native.parts import discard, work_folders
from quantize.engines.native.precision import Arithmetic
from quantize.errors import BadInput, StepFailed
from quantize.hf.load import load_model
from quantize.hf.matrices import decoder_linears
from quantize.numerics.gptq import solve
from quantize.numerics.grids import Codes, Grid
from quantize.numerics.rtn import round_to_nearest
from quantize.recipe import RunOptions

ROWS = np.random.default_rng(0).integers(3, 4096, (24, 128))
GRID = Grid(4, 64, True)
RUN = RunOptions(device="cpu", threads=1, progress=False)
MOE = {
    "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2,
    "num_key_value_heads": 1, "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 4096,
    "max_position_embeddings": 256,
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def small(make_checkpoint: Callable[..., Path]) -> Checkpoint:
    return Checkpoint.open(
        make_checkpoint(hidden_size=128, intermediate_size=192, num_hidden_layers=3, num_attention_heads=2)
    )


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    from transformers import MixtralConfig, MixtralForCausalLM

    folder = tmp_path_factory.mktemp("mixtral")
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**MOE))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight.normal_(std=0.3)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")  # never opened here
    return Checkpoint.open(folder)


def codes(
    checkpoint: Checkpoint,
    rows: np.ndarray = ROWS,
    run: RunOptions = RUN,
    statistics_bytes: int | None = None,
    **settings: Any,
) -> tuple[dict[str, Codes], Any]:
    decoder = decoder_linears(checkpoint)
    linears = list(decoder)
    inner = gptq_solver(GptqSettings({each.name: GRID for each in linears}, **settings))
    with quantized_layers(
        checkpoint,
        decoder,
        linears,
        rows,
        run,
        lambda layer, mine, most: inner(layer, mine, statistics_bytes or most),
        key={"settings": str(settings)},
        arithmetic=Arithmetic("float32"),
        title="gptq",
    ) as done:
        found = {each.name: done.codes(each.name) for each in linears}
    discard(done.parts.folder)
    return found, done


def same(one: dict[str, Codes], other: dict[str, Codes]) -> bool:
    return all(
        torch.equal(getattr(each, kind), getattr(other[name], kind))
        for name, each in one.items()
        for kind in ("codes", "scales", "zeros")
    )


def by_hand(checkpoint: Checkpoint) -> Iterator[tuple[str, Codes]]:
    """GPTQ on a whole model in memory: hooks, float64 Hessians, the matrices of each group in turn."""
    model = load_model(checkpoint.folder, "float32", "cpu")
    ids = torch.from_numpy(ROWS)
    for number in range(model.config.num_hidden_layers):
        for group in (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)):
            modules = {
                name: module
                for name, module in model.named_modules()
                if name.startswith(f"model.layers.{number}.") and name.endswith(group)
            }
            sums: dict[str, torch.Tensor] = {}

            def add(module: Any, args: Any, name: str, sums: dict[str, torch.Tensor] = sums) -> None:
                rows = args[0].reshape(-1, args[0].shape[-1]).double()
                sums[name] = sums.get(name, 0) + rows.T @ rows

            handles = [
                module.register_forward_pre_hook(lambda module, args, name=name: add(module, args, name))
                for name, module in modules.items()
            ]
            with torch.no_grad():
                model(input_ids=ids, use_cache=False)
            for handle in handles:
                handle.remove()
            for name, module in modules.items():
                found = solve(module.weight.detach(), sums[name].float(), GRID).codes
                module.weight.data = found.values()
                yield name, found


def test_codes_are_those_of_gptq_by_hand(small: Checkpoint) -> None:
    """Only sums in another order lie between the two, which turn over a code that lies between two others and
    what follows from it."""
    found, done = codes(small)
    compared = 0
    for name, expected in by_hand(small):
        differ = float((found[name].codes != expected.codes).float().mean())
        assert differ < 0.02, name
        compared += 1
    assert compared == len(found) == 3 * 7
    assert set(done.losses) == set(found)
    assert not done.notes


def test_losses_are_below_those_of_rounding_to_nearest(small: Checkpoint) -> None:
    """In the first group, whose inputs are the same for both."""
    found, done = codes(small)
    sums: list[torch.Tensor] = []
    model = load_model(small.folder, "float32", "cpu")
    module = model.get_submodule("model.layers.0.self_attn.q_proj")
    module.register_forward_pre_hook(lambda _, args: sums.append(args[0].reshape(-1, 128).double()))
    with torch.no_grad():
        model(input_ids=torch.from_numpy(ROWS), use_cache=False)
    hessian = sums[0].T @ sums[0] / ROWS.size
    weight = module.weight.detach()

    def loss(values: torch.Tensor) -> float:
        errors = (weight - values).double()
        return float(((errors @ hessian) * errors).sum())

    name = "model.layers.0.self_attn.q_proj"
    assert done.losses[name] == pytest.approx(loss(found[name].values()), rel=1e-3)
    assert done.losses[name] < loss(round_to_nearest(weight, GRID).values())


def test_what_was_computed_is_recorded_by_the_names_of_the_source(small: Checkpoint) -> None:
    found, done = codes(small)
    for name, each in found.items():
        weight = f"{name}.weight"
        values = each.values().numpy()
        assert not len(done.computed.differing_rows(weight, values))
        assert len(done.computed.differing_rows(weight, values[::-1].copy()))
        assert not len(done.computed.rows_of_another_source(weight, small.read_float32(weight)))


def test_a_killed_run_is_gone_on_with(small: Checkpoint, tmp_path: Path) -> None:
    """Killed by SIGKILL while it works at the last of three layers; the two before are not solved again."""
    whole, done = codes(small)
    assert done.went_on == 0
    script = textwrap.dedent(f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_layers as t
        inner = t.gptq_solver
        def killed(settings):
            solver = inner(settings)
            def solve(layer, *args):
                if layer.index == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                return solver(layer, *args)
            return solve
        t.gptq_solver = killed
        t.codes(t.Checkpoint.open({str(small.folder)!r}))
    """)
    child = subprocess.run([sys.executable, "-c", script], env={**os.environ}, capture_output=True, text=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    (left,) = work_folders()
    assert sorted(path.name for path in left.glob("layer-*")) == [
        "layer-00000.safetensors", "layer-00001.safetensors",
    ]  # fmt: skip
    again, done = codes(Checkpoint.open(small.folder))
    assert done.went_on == 2
    assert same(whole, again)
    assert not work_folders()


def test_other_settings_do_not_go_on_with_it(small: Checkpoint) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(small)
    assert len(work_folders()) == 1
    _, done = codes(small, damping=0.1)
    assert done.went_on == 0


def interrupted(checkpoint: Checkpoint) -> None:
    decoder = decoder_linears(checkpoint)
    inner = gptq_solver(GptqSettings({each.name: GRID for each in decoder}))

    def solver(layer: Any, *args: Any) -> Any:
        if layer.index == 1:
            raise KeyboardInterrupt
        return inner(layer, *args)

    with quantized_layers(
        checkpoint, decoder, list(decoder), ROWS, RUN, solver, key={"settings": "{}"},
        arithmetic=Arithmetic("float32"), title="",
    ):  # fmt: skip
        pass


def test_a_part_that_is_cut_off_is_made_again(small: Checkpoint) -> None:
    whole, _ = codes(small)
    with pytest.raises(KeyboardInterrupt):
        interrupted(small)
    (path,) = work_folders()[0].glob("layer-*")
    path.write_bytes(path.read_bytes()[:-100])
    again, done = codes(small)
    assert done.went_on == 0
    assert same(whole, again)


def test_hidden_states_in_files_change_no_code(
    small: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import quantize.engines.native.layers as layers

    whole, _ = codes(small)
    budgets = []

    class Little(layers.Budget):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            budgets.append(self.state_bytes)
            self.state_bytes = 0

    monkeypatch.setattr(layers, "Budget", Little)
    again, _ = codes(small, run=RUN.model_copy(update={"scratch": tmp_path}))
    assert budgets[0] > 0
    assert same(whole, again)


def test_too_little_memory_is_said_before_any_work(small: Checkpoint) -> None:
    with pytest.raises(BadInput, match=r"takes about .* and 67.11 MB is allowed; give more --memory"):
        codes(small, run=RUN.model_copy(update={"memory_bytes": 64 << 20}))
    assert not work_folders()


def test_experts_that_few_tokens_reach_share_statistics(experts: Checkpoint) -> None:
    found, done = codes(experts, ROWS[:1])  # 128 tokens, two of eight experts each: 32 on average
    rare = {note.tensor: note for note in done.notes}
    assert any("experts.3." in name for name in rare)
    assert all("of its" in note.what and "64 inputs reached it" in note.why for note in rare.values())
    assert len(found) == 2 * (4 + 8 * 3)
    _, plenty = codes(experts)
    assert len(plenty.notes) < len(done.notes)


def test_statistics_in_several_turns_change_no_code(experts: Checkpoint) -> None:
    """The Hessians of two experts at a time: what all experts share is gathered first."""
    whole, one = codes(experts, ROWS[:2])
    again, two = codes(experts, ROWS[:2], statistics_bytes=2 * 4 * 64 * 64)
    assert same(whole, again)
    assert [note.tensor for note in one.notes] == [note.tensor for note in two.notes]


def test_a_matrix_that_sees_only_zeros_is_named(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_checkpoint(hidden_size=128, intermediate_size=192, num_attention_heads=2)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.self_attn.v_proj.weight"].zero_()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    broken = Checkpoint.open(folder)
    with pytest.raises(StepFailed, match=r"model\.layers\.1\.self_attn\.o_proj: no calibration token"):
        codes(broken)
    found, done = codes(broken, on_failure="rtn")
    (note,) = done.notes
    assert (note.tensor, note.what) == (
        "model.layers.1.self_attn.o_proj", "rounded to nearest, without calibration",
    )  # fmt: skip
    weight = torch.from_numpy(broken.read_float32(f"{note.tensor}.weight"))
    assert torch.equal(found[note.tensor].codes, round_to_nearest(weight, GRID).codes)
