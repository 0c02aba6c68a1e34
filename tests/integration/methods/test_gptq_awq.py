"""GPTQ and AWQ end to end on small models: the engine writes, our readers read, the engine and transformers
are the oracles."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from quantize.artifact.artifact import CalibrationRecord
from quantize.calibration.windows import Calibration
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.tensors import Entry, StoredTensors, write_folder
from quantize.engines.base import Conversion
from quantize.engines.gptqmodel.layers import MODEL_TYPES
from quantize.errors import BadInput, StepFailed, Unsupported
from quantize.methods.registry import parse_recipe, plan
from quantize.recipe import Recipe, RunOptions
from quantize.sources.opening import open_checkpoint
from quantize.verification.weights import check_weights

pytest.importorskip("gptqmodel")

SMALL = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
}  # fmt: skip
RUN = RunOptions(device="cpu", progress=False)
RECIPES = [
    "gptq-int4",
    "gptq-int4:group_size=32,sym=false,desc_act=true",
    "gptq-int3:group_size=64",
    "gptq-int2:group_size=16,sym=false",
    "gptq-int8:group_size=-1",
    "awq-int4",
    "awq-int4:group_size=32",
]


def by_gptqmodel(spelled: str) -> Recipe:
    return parse_recipe(f"{spelled}{',' if ':' in spelled else ':'}engine=gptqmodel")


def calibration(rows: int = 8, length: int = 64, seed: int = 0, vocabulary: int = 4096) -> Calibration:
    ids = np.random.default_rng(seed).integers(1, vocabulary, (rows, length))
    record = CalibrationRecord(
        source="random", sha256="", ids_sha256="", tokens=ids.size, sequence_length=length, seed=seed
    )  # fmt: skip
    return Calibration(ids, record)


@pytest.fixture(scope="module")
def small(make_checkpoint: Callable[..., Path]) -> Checkpoint:
    return open_checkpoint(make_checkpoint(**SMALL))


def make(checkpoint: Checkpoint, spelled: str, folder: Path, text: Calibration | None = None) -> Conversion:
    recipe = by_gptqmodel(spelled)
    work = plan(checkpoint, recipe)
    folder.mkdir()
    return work.write(folder, RUN, text or calibration())


@pytest.fixture(scope="module", params=RECIPES)
def made(
    request: pytest.FixtureRequest, small: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("made") / "artifact"
    conversion = make(small, request.param, folder)
    recipe = by_gptqmodel(request.param)
    work = plan(small, recipe)
    return SimpleNamespace(folder=folder, conversion=conversion, recipe=recipe, work=work, source=small)


def test_every_linear_is_quantized_and_nothing_else(made: SimpleNamespace) -> None:
    found = made.work.quantized(made.folder)
    assert set(found) == made.work.expected
    assert len(found) == 7
    group = f"g{made.work.format.group_size}" if made.work.format.group_size > 0 else "per channel"
    assert set(found.values()) == {f"{made.recipe.method}-int{made.recipe.bits} {group}"}
    kept = {note.tensor for note in made.conversion.notes if note.what.startswith("kept")}
    assert kept == {"model.embed_tokens.weight", "lm_head.weight"}


def test_only_what_a_rerun_reproduces(made: SimpleNamespace) -> None:
    assert sorted(path.name for path in made.folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "quantize_config.json",
    ]
    text = (made.folder / "config.json").read_text()
    assert "offload" not in text
    assert "/tmp" not in text
    config = json.loads(text)
    quantization = config.pop("quantization_config")
    assert config == made.source.config
    assert quantization == json.loads((made.folder / "quantize_config.json").read_text())
    expected = {"gptq": {"checkpoint_format": "gptq"}, "awq": {"version": "gemm", "zero_point": True}}[
        made.recipe.method
    ]
    assert expected.items() <= quantization.items()


def test_bytes_are_counted(made: SimpleNamespace) -> None:
    from quantize.formats.packed import stored_tensors

    assert made.conversion.weight_bytes == sum(
        info.size_bytes for info in stored_tensors(made.folder).tensors.values()
    )


def test_reader_covers_the_source(made: SimpleNamespace) -> None:
    """Every tensor once, of its shape; those not quantized (and, for AWQ, not scaled) bit for bit."""
    read = dict(made.work.read(made.folder))
    assert list(read) == list(made.source.tensors)
    quantized = made.work.expected
    for name, values in read.items():
        source = made.source.read_float32(name)
        assert values.dtype == np.float32
        assert values.shape == source.shape
        if name not in quantized and (made.recipe.method == "gptq" or "layernorm" not in name):
            np.testing.assert_array_equal(values, source)


def test_every_weight_equals_what_the_engine_computed(made: SimpleNamespace) -> None:
    checks = check_weights(made.work, made.folder, made.conversion, None).checks
    assert checks[0].passed, checks[0].detail
    assert checks[0].detail == "12 tensors, 12 equal to what the engine computed"


def exchange(arrays: dict[str, np.ndarray]) -> None:
    for name in [name for name in arrays if ".up_proj." in name]:
        other = name.replace("up_proj", "gate_proj")
        arrays[name], arrays[other] = arrays[other], arrays[name]


def scale_of_the_neighbour(arrays: dict[str, np.ndarray]) -> None:
    scales = arrays["model.layers.0.mlp.up_proj.scales"]
    first = int(np.flatnonzero(scales[0, 1:] != scales[0, :-1])[0])
    scales[0, first] = scales[0, first + 1]


def turn_outputs(arrays: dict[str, np.ndarray]) -> None:
    for name, raw in arrays.items():
        if name.startswith("model.layers.0.mlp.up_proj.") and not name.endswith("g_idx"):
            arrays[name] = np.roll(raw, raw.shape[1] // 2, 1)


@pytest.mark.parametrize("made", ["gptq-int4", "awq-int4"], indirect=True)
@pytest.mark.parametrize(
    ("damage", "without"), [(exchange, True), (turn_outputs, True), (scale_of_the_neighbour, False)]
)
def test_damage_is_noticed(
    made: SimpleNamespace, damage: Callable[[dict[str, np.ndarray]], None], without: bool, tmp_path: Path
) -> None:
    stored = StoredTensors(made.folder)
    arrays = {name: np.array(stored.raw(name)) for name in stored}
    damage(arrays)
    write_folder(
        tmp_path,
        [Entry(n, i.dtype, arrays[n].shape) for n, i in stored.info.items()],
        lambda name: arrays[name],
    )
    for known in (made.conversion, Conversion(0, ""))[: 1 + without]:
        checks = check_weights(made.work, tmp_path, known, None).checks
        assert not checks[0].passed
        assert "mlp.up_proj" in checks[0].detail or "mlp.gate_proj" in checks[0].detail


def load(folder: Path, backend: dict[str, Any] | None = None) -> Any:
    from transformers import AutoModelForCausalLM, AwqConfig, GPTQConfig

    from quantize.hf.extensions import ensure_kernel_environment
    from quantize.quiet import quiet

    ensure_kernel_environment()
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    with quiet():
        options = {}
        if backend:
            chosen = GPTQConfig if config["quant_method"] == "gptq" else AwqConfig
            options["quantization_config"] = chosen(bits=config["bits"], **backend)
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, device_map={"": "cpu"}, **options
        ).eval()


@pytest.mark.usefixtures("eager")
def test_reader_agrees_with_the_engine(made: SimpleNamespace) -> None:
    """GPTQModel's own dequantization of each layer, float16 scales on both sides."""
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    backend = "gptq_torch" if made.recipe.method == "gptq" else "torch_awq"
    model = load(made.folder, {"backend": backend})
    compared = 0
    for name, values in made.work.read(made.folder):
        layer = model.get_submodule(name.removesuffix(".weight"))
        if not hasattr(layer, "qweight"):
            continue
        if made.recipe.method == "gptq":
            theirs = layer.dequantize_weight()
        else:
            theirs = dequantize_gemm(
                layer.qweight, layer.qzeros, layer.scales.float(), made.recipe.bits, layer.group_size
            )
        np.testing.assert_allclose(values, theirs.float().numpy().T, rtol=2**-10, atol=1e-6)
        compared += 1
    assert compared == 7


@pytest.mark.usefixtures("eager")
def test_runtime_agrees_with_the_reader(made: SimpleNamespace) -> None:
    """As transformers loads it unasked; and it is near the source: nearer than an AWQ whose scales do not
    cancel could be."""
    from transformers import AutoModelForCausalLM

    served = load(made.folder)
    dense = AutoModelForCausalLM.from_pretrained(made.source.folder, dtype=torch.float32).eval()
    ids = torch.from_numpy(calibration(2, 48, seed=9).ids)
    with torch.no_grad():
        source = dense(ids).logits
        dense.load_state_dict({n: torch.from_numpy(v) for n, v in made.work.read(made.folder)})
        read, runtime = dense(ids).logits, served(ids).logits
        continued = served.generate(ids[:1, :8], max_new_tokens=4, do_sample=False)
    assert divergence(read, runtime) < made.work.format.kl_tolerance
    cost = divergence(source, read)
    assert 0 < cost < {2: 0.5, 3: 0.02, 4: 0.01, 8: 1e-4}[made.recipe.bits]
    assert continued.shape == (1, 12)


def divergence(a: torch.Tensor, b: torch.Tensor) -> float:
    p, q = a.double().log_softmax(-1), b.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.usefixtures("eager")
def test_engine_opens_it(made: SimpleNamespace) -> None:
    from gptqmodel import GPTQModel

    from quantize.quiet import quiet

    # it wants a tokenizer; conversion copies the source's
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
    ):
        (made.folder / name).write_bytes((made.source.folder / name).read_bytes())
    try:
        with quiet(), torch.no_grad():
            model = GPTQModel.load(str(made.folder), device="cpu", dtype=torch.bfloat16).model
            assert torch.isfinite(model(torch.arange(1, 9)[None]).logits).all()
    finally:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (made.folder / name).unlink()


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("made", ["gptq-int4", "awq-int4"], indirect=True)
def test_a_folder_that_is_no_artifact_of_ours_is_measured(made: SimpleNamespace) -> None:
    """As the engine wrote it: no manifest, no tokenizer."""
    from evals import evaluate

    source = made.source.folder
    rows = evaluate(
        [made.folder], reference=source, tokens=400, protocol="gptq-100", run=RUN, say=lambda text: None
    )
    found = {row.metric: row for row in rows}
    assert 1e-5 < (found["kl_mean"].value or 0) < 0.02
    assert found["perplexity"].environment["runtime"]["format"] == made.recipe.method
    assert found["perplexity"].artifact == str(made.folder)


@pytest.mark.parametrize("spelled", ["gptq-int4:group_size=32,sym=false", "awq-int4"])
def test_same_inputs_same_bytes(small: Checkpoint, spelled: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        make(small, spelled, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_one_thread_is_enough(small: Checkpoint, tmp_path: Path) -> None:
    """The engine keeps two workers for reading files whatever it is given; a process of its own, for it reads
    that once."""
    options = [
        "--to",
        "gptq-int4",
        "--calibration-tokens",
        "512",
        "--verify",
        "none",
        "--threads",
        "1",
        "--device",
        "cpu",
    ]
    command = [
        sys.executable,
        "-m",
        "quantize.cli",
        "convert",
        str(small.folder),
        *options,
        "-o",
        str(tmp_path / "out"),
    ]
    environment = {key: value for key, value in os.environ.items() if key != "GPTQMODEL_CPU_WORKERS"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_layer_by_layer_gives_the_same_bytes(
    small: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large models go through a scratch folder; nothing of it stays, and the result is the same."""
    from quantize.engines.gptqmodel import engine as gptqmodel_engine

    make(small, "gptq-int4", tmp_path / "a")
    monkeypatch.setattr(gptqmodel_engine, "OFFLOAD_ABOVE_PARAMETERS", 0)
    make(small, "gptq-int4", tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == sorted(
        path.name for path in (tmp_path / "a").iterdir()
    )
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (
        tmp_path / "b" / "model.safetensors"
    ).read_bytes()


def test_shards(small: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantize.engines.gptqmodel import checkpoint as gptqmodel_checkpoint

    monkeypatch.setattr(gptqmodel_checkpoint, "SHARD_BYTES", 600_000)
    conversion = make(small, "gptq-int4", tmp_path / "a")
    index = json.loads((tmp_path / "a" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == conversion.weight_bytes
    assert len(set(index["weight_map"].values())) > 1
    work = plan(small, by_gptqmodel("gptq-int4"))
    assert set(work.quantized(tmp_path / "a")) == work.expected
    load(tmp_path / "a")


# --- what must stop a conversion, or be noted


def test_overflowing_activations_stop_it(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """Left alone, the engine rounds such layers to nearest."""
    checkpoint = damaged(make_checkpoint, {"model.layers.0.post_attention_layernorm.weight": 3e38})
    with pytest.raises(StepFailed, match=r"(?s)layers\.0|layer 0|mlp") as error:
        make(checkpoint, "gptq-int4", tmp_path / "a")
    assert "\n" not in str(error.value)
    assert list((tmp_path / "a").iterdir()) == []


def test_overflowing_activations_stop_awq(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = damaged(make_checkpoint, {"model.layers.0.post_attention_layernorm.weight": 3e38})
    with pytest.raises(StepFailed, match="at layer 0"):
        make(checkpoint, "awq-int4", tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == []


def test_nan_in_a_weight(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = damaged(make_checkpoint, {"model.layers.0.mlp.up_proj.weight": float("nan")})
    with pytest.raises(StepFailed, match=r"model\.layers\.0\.mlp\.up_proj\.weight holds \d+ NaN"):
        make(checkpoint, "gptq-int4", tmp_path / "a")


def damaged(make_checkpoint: Callable[..., Path], changes: dict[str, float]) -> Checkpoint:
    from safetensors.torch import load_file, save_file

    folder = make_checkpoint(**SMALL)
    tensors = load_file(folder / "model.safetensors")
    for name, value in changes.items():
        tensors[name].fill_(value)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return open_checkpoint(folder)


def test_raised_damping_is_noted(small: Checkpoint, tmp_path: Path) -> None:
    """One token over and over: Hessians of rank one, which a damping of 1e-9 leaves singular in float32."""
    text = calibration()
    text.ids[:] = 7
    conversion = make(small, "gptq-int4:damp_percent=1e-9", tmp_path / "a", text)
    whats = [note.what for note in conversion.notes]
    assert any(what.startswith("damping raised from 1e-09 to 0.01") for what in whats) or any(
        "diagonal" in what for what in whats
    )


def test_lost_levels_are_noted(small: Checkpoint, tmp_path: Path) -> None:
    """Groups without a negative weight have zero point 0, which the format cannot say; a quarter of the rows
    here."""
    conversion = make(small, "gptq-int2:group_size=16,sym=false", tmp_path / "a")
    noted = {note.tensor for note in conversion.notes if "zero points are raised" in note.what}
    from quantize.formats.packed import stored_tensors
    from quantize.numerics.packing import gptq_zeros

    stored = stored_tensors(tmp_path / "a")
    assert noted <= plan(small, by_gptqmodel("gptq-int2:group_size=16,sym=false")).expected
    for base in (name.removesuffix(".qzeros") for name in stored.tensors if name.endswith(".qzeros")):
        assert gptq_zeros(stored.read(f"{base}.qzeros"), 2).max() <= 3


# --- what is refused before any work


@pytest.mark.parametrize(
    ("spelled", "config", "message"),
    [
        (
            "gptq-int4:group_size=128",
            {"intermediate_size": 352},
            r"down_proj\.weight has 352 inputs, which groups of 128 do not divide.*group_size=32",
        ),
        ("gptq-int4:group_size=1024", {}, r"groups of 1024 do not divide; use gptq-int4:group_size=128"),
        ("awq-int4:group_size=32", {"intermediate_size": 352}, "352 outputs, and .* needs a multiple of 64"),
        ("awq-int4", {"model_type": "gemma3_text"}, "rotary"),
        ("awq-int4", {"model_type": "mamba"}, "does not support model_type 'mamba'"),
        ("gptq-int4", {"model_type": "gpt2"}, "does not support model_type 'gpt2'"),
        ("gptq-int4", {"model_type": "mixtral"}, "under names that loaders do not look for"),
    ],
)
def test_refused_from_headers(small: Checkpoint, spelled: str, config: dict[str, Any], message: str) -> None:
    from dataclasses import replace

    tensors = dict(small.tensors)
    if size := config.get("intermediate_size"):
        for name, info in small.tensors.items():
            if "mlp" in name:
                tensors[name] = replace(info, shape=tuple(size if n == 256 else n for n in info.shape))
    changed = replace(small, tensors=tensors, config={**small.config, **config})
    recipe = by_gptqmodel(spelled)
    with pytest.raises(Unsupported, match=message):
        plan(changed, recipe)


@pytest.mark.parametrize(
    ("spelled", "message"),
    [
        ("gptq-int4:bits=5", "bits"),
        ("gptq-int4:group_size=100", "group_size"),
        ("gptq-int4:damp_percent=0", "damp_percent"),
        ("gptq-int4:damp_percent=1", "damp_percent"),
        ("awq-int4:bits=3", "bits"),
        ("awq-int4:group_size=256", "group_size"),
        ("awq-int4:search_tokens=1", "search_tokens"),
        ("awq-int4:sym=true", "not a parameter"),
        ("rtn-int8:format=awq", "packs 4 bits"),
        ("rtn-int4:format=awq,group_size=16", "groups of 32, 64, 128 or -1"),
        ("gptq-int4:group=64", "did you mean group_size"),
    ],
)
def test_parameters_out_of_range(spelled: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        parse_recipe(spelled)


def test_spellings() -> None:
    assert parse_recipe("gptq-int4").canonical == {
        "method": "gptq", "bits": 4, "group_size": "auto", "desc_act": False, "sym": True,
        "damp_percent": 0.05,
    }  # fmt: skip
    for spelled in (
        "gptq-int3",
        "gptq-int4:group_size=-1,desc_act=true",
        "awq-int4",
        "awq-int4:group_size=64",
    ):
        assert parse_recipe(spelled).short == spelled


# --- the engine's parts that are leant on


def test_model_types_are_the_engines() -> None:
    from gptqmodel.models.auto import MODEL_MAP

    assert MODEL_MAP.keys() >= MODEL_TYPES


@pytest.mark.parametrize("group", [32, -1])
@pytest.mark.parametrize("symmetric", [False, True])
def test_clipping_bounds_are_the_engines(group: int, symmetric: bool) -> None:
    """The quadratic form finds what the engine's own row-by-row products find."""
    from gptqmodel.looper.awq_processor import AWQProcessor

    from quantize.numerics.clip import best_clip

    random = torch.Generator().manual_seed(group)
    processor = AWQProcessor.__new__(AWQProcessor)
    processor.qcfg = SimpleNamespace(group_size=group, sym=symmetric, bits=4)
    weight = torch.randn(64, 64, generator=random) * torch.randn(64, generator=random).exp()
    inputs = torch.randn(3, 400, 64, generator=random) * torch.randn(64, generator=random).exp()
    theirs = AWQProcessor._compute_best_clip(processor, weight, inputs)
    ours = best_clip(weight, inputs, group, processor._pseudo_quantize_tensor_into)
    assert ours.shape == theirs.shape
    assert (ours < weight.abs().reshape(64, -1, group if group > 0 else 64).amax(-1, keepdim=True)).any()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


FAMILY_SETTINGS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
        "decoder_sparse_step": 1,
    },
    "gemma3_text": {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]},
    "gemma2": {"sliding_window": 64, "query_pre_attn_scalar": 64},
    "phi": {"num_key_value_heads": 2},
}


@pytest.mark.long
@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("kind", sorted(MODEL_TYPES))
@pytest.mark.parametrize("preset", ["gptq-int4", "awq-int4"])
def test_every_family(kind: str, preset: str, small: Checkpoint, tmp_path: Path) -> None:
    """Every model type that ``check`` lets through: quantized whole, loaded by transformers, and run to the
    reader's logits."""
    import shutil

    from transformers import AutoConfig, AutoModelForCausalLM

    from quantize.calibration.layers import streamed_model
    from quantize.engines.gptqmodel.layers import WITHOUT_AWQ

    if preset == "awq-int4" and kind in WITHOUT_AWQ:
        pytest.skip(WITHOUT_AWQ[kind])
    torch.manual_seed(0)
    settings = {
        **SMALL, "vocab_size": 4096, "num_hidden_layers": 2, "head_dim": 64, "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0, **FAMILY_SETTINGS.get(kind, {}),
    }  # fmt: skip
    source = tmp_path / "source"
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).to(
        torch.bfloat16
    ).save_pretrained(source)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(small.folder / name, source / name)
    checkpoint, recipe = open_checkpoint(source), by_gptqmodel(f"{preset}:group_size=64")
    make(checkpoint, f"{preset}:group_size=64", tmp_path / "made")
    work = plan(checkpoint, recipe)
    assert set(work.quantized(tmp_path / "made")) == work.expected
    read = dict(work.read(tmp_path / "made"))
    ids = torch.from_numpy(calibration(1, 48, seed=5).ids)
    with torch.no_grad():
        ours = streamed_model(checkpoint, read.__getitem__, frozenset())(ids).logits
        assert divergence(ours, load(tmp_path / "made")(ids).logits) < work.format.kl_tolerance


def test_search_rows_are_spread() -> None:
    from quantize.engines.gptqmodel.awq import spread_rows

    ids = np.arange(10)[:, None] * np.ones(64, int)
    assert spread_rows(ids, 640).shape == (10, 64)
    assert spread_rows(ids, 200)[:, 0].tolist() == [0, 4, 9]
    assert spread_rows(ids, 1).shape == (1, 64)
