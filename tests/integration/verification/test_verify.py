"""Verification notices damage: scales that grew, tensors swapped, a row lost, a tokenizer changed, a runtime
that disagrees."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quantize import Artifact, Checkpoint, convert
from quantize.artifact.artifact import Check, Verification
from quantize.checkpoint.safetensors_header import read_metadata
from quantize.checkpoint.tensors import Entry, StoredTensors, write_folder
from quantize.engines.base import Computed, Conversion
from quantize.formats.base import KL_FLOAT32
from quantize.hashes import sha256_file
from quantize.methods.registry import parse_recipe, plan
from quantize.recipe import RunOptions
from quantize.sources.opening import open_checkpoint
from quantize.verification.verify import verify
from quantize.verification.weights import check_weights

CPU = RunOptions(device="cpu")
RECIPES = ["quanto-int8", "quanto-int4", "bnb-nf4", "bnb-nf4:double_quant=true", "bnb-int8", "torchao-int8"]
LAYER = "model.layers.0.mlp.up_proj.weight"
OTHER = "model.layers.0.mlp.gate_proj.weight"


@pytest.fixture(scope="module")
def source(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(num_hidden_layers=1)


@pytest.fixture(scope="module")
def artifacts(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("artifacts")
    return {short: convert(source, short, folder / parse_recipe(short).slug, run=CPU) for short in RECIPES}


@pytest.mark.parametrize("short", RECIPES)
def test_sound_artifacts_pass(short: str, artifacts: dict[str, Artifact]) -> None:
    verification = artifacts[short].manifest.verification
    assert verification.level == "full"
    assert verification.passed
    checks = {check.name: check for check in verification.checks}
    assert set(checks) >= {
        "types",
        "tokenizer",
        "chat template",
        "weights",
        "weight error",
        "opens",
        "logits",
    }
    assert checks["distance to source"].tolerance is None
    assert checks["distance to source"].value is not None
    if short != "bnb-int8":  # which rounds activations
        assert checks["logits"].value is not None
        assert checks["logits"].value < KL_FLOAT32
    assert 0.001 < (checks["weight error"].value or 0) < 0.2


def test_the_distance_is_the_same_whether_the_source_s_logits_are_kept(
    source: Path, artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantize.verification.logits.KEPT_BYTES", 0)
    again = convert(source, "bnb-nf4", tmp_path / "again", run=CPU)
    kept, streamed = (
        {check.name: check.value for check in each.manifest.verification.checks}
        for each in (artifacts["bnb-nf4"], again)
    )
    assert kept == streamed


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Read every tensor of ``folder`` as raw arrays, change them, write them back."""
    stored = StoredTensors(folder)
    arrays = {name: np.array(stored.raw(name)) for name in stored}
    change(arrays)
    entries = [Entry(name, info.dtype, arrays[name].shape) for name, info in stored.info.items()]
    metadata = read_metadata(folder / "model.safetensors")
    write_folder(folder, entries, lambda name: arrays[name], metadata=metadata)


def bfloat16_times(raw: np.ndarray, factor: float) -> np.ndarray:
    values = (raw.astype(np.uint32) << 16).view(np.float32) * np.float32(factor)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def parts(arrays: dict[str, np.ndarray], layer: str) -> list[str]:
    base = layer.removesuffix("weight")
    return sorted(name for name in arrays if name.startswith(base))


def grow_scales(arrays: dict[str, np.ndarray]) -> None:
    names = [
        n
        for n in parts(arrays, LAYER)
        if n.endswith(("_scale", "_shift", ".absmax", ".nested_absmax", "SCB"))
    ]
    names = [n for n in names if not n.endswith(("input_scale", "output_scale"))]
    if f"{LAYER}.nested_absmax" in arrays:
        arrays[f"{LAYER}.nested_absmax"] *= np.float32(1.5)
        name = f"{LAYER}.quant_state.bitsandbytes__nf4"
        state = json.loads(bytes(arrays[name]))
        state["nested_offset"] *= 1.5
        arrays[name] = np.frombuffer(json.dumps(state).encode(), np.uint8)
        return
    for name in names:
        raw = arrays[name]
        arrays[name] = bfloat16_times(raw, 1.5) if raw.dtype == np.uint16 else raw * np.float32(1.5)
    assert names


def swap(arrays: dict[str, np.ndarray]) -> None:
    for mine, theirs in zip(parts(arrays, LAYER), parts(arrays, OTHER), strict=True):
        arrays[mine], arrays[theirs] = arrays[theirs], arrays[mine]


def lose_row(arrays: dict[str, np.ndarray]) -> None:
    for name in parts(arrays, LAYER):
        raw = arrays[name]
        if name.endswith(("weight._data", "weight", "._weight_qdata")) and raw.dtype == np.int8:
            raw[7] = 0
        elif name.endswith(("weight._scale", "weight._shift")) or (
            name.endswith(".absmax") and raw.dtype == np.float32
        ):
            raw.reshape(256, -1)[7] = 0
        elif name == LAYER and f"{LAYER}.nested_absmax" in arrays:
            raw.reshape(256, -1)[7] = 0x77  # nf4's code for zero, twice


def reverify(
    short: str,
    artifacts: dict[str, Artifact],
    source: Path,
    tmp_path: Path,
    change: Callable[[Path], None],
    level: str,
) -> Verification:
    stage = tmp_path / "stage"
    shutil.copytree(artifacts[short].folder, stage)
    change(stage)
    recipe = parse_recipe(short)
    notes = list(artifacts[short].manifest.notes)
    result = verify(plan(open_checkpoint(source), recipe), stage, Conversion(0, "", notes=notes), CPU, level)
    assert not result.passed
    assert {path.name for path in tmp_path.iterdir()} == {"stage"}  # no scratch left
    return result


@pytest.fixture(scope="module")
def two_layers(make_checkpoint: Callable[..., Path]) -> Checkpoint:
    return open_checkpoint(make_checkpoint(num_hidden_layers=2, hidden_size=128, intermediate_size=256))


@pytest.fixture(scope="module")
def conversions(
    two_layers: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Conversion]]:
    """What the methods wrote and what they say their engines computed; nothing verified yet."""
    made = {}
    for short in RECIPES:
        recipe, folder = parse_recipe(short), tmp_path_factory.mktemp("made")
        made[short] = (folder, plan(two_layers, recipe).write(folder, CPU, None))
    return made


@pytest.mark.parametrize("short", RECIPES)
def test_every_weight_equals_what_the_engine_computed(
    short: str, conversions: dict[str, tuple[Path, Conversion]], two_layers: Checkpoint
) -> None:
    folder, conversion = conversions[short]
    recipe = parse_recipe(short)
    weights = check_weights(plan(two_layers, recipe), folder, conversion, None)
    count = len(two_layers.tensors)
    assert weights.checks[0] == Check(
        name="weights", passed=True, detail=f"{count} tensors, {count} equal to what the engine computed"
    )


def swap_layers(arrays: dict[str, np.ndarray]) -> None:
    for mine in [name for name in arrays if ".layers.0.mlp.up_proj." in name]:
        theirs = mine.replace(".layers.0.", ".layers.1.")
        arrays[mine], arrays[theirs] = arrays[theirs], arrays[mine]


def turn_rows(arrays: dict[str, np.ndarray]) -> None:
    """The first half of the rows after the second: the parts of a fused matrix in another order."""
    for name in parts(arrays, LAYER):
        raw = arrays[name]
        if (
            raw.size >= 256
            and not name.endswith(("quant_map", "nested_absmax"))
            and "quant_state" not in name
        ):
            arrays[name] = np.roll(raw.reshape(-1), raw.size // 2).reshape(raw.shape)


def scale_of_the_neighbour(arrays: dict[str, np.ndarray]) -> None:
    name = next(
        n for n in parts(arrays, LAYER) if n.endswith(("weight._scale", "_weight_scale", ".absmax", "SCB"))
    )
    scales = arrays[name].reshape(-1)
    first = int(np.flatnonzero(scales[1:] != scales[:-1])[0])
    scales[first] = scales[first + 1]


@pytest.mark.parametrize("short", RECIPES)
@pytest.mark.parametrize(
    ("damage", "without"),
    [
        (swap_layers, True),
        (turn_rows, True),
        (scale_of_the_neighbour, False),
        (swap, True),
        (grow_scales, False),
        (lose_row, False),
    ],
)
def test_damage_to_what_was_computed(
    short: str,
    damage: Callable[[dict[str, np.ndarray]], None],
    without: bool,
    conversions: dict[str, tuple[Path, Conversion]],
    two_layers: Checkpoint,
    tmp_path: Path,
) -> None:
    """Told by what was computed; misplaced tensors and rows by whose they are where nobody says what was (the
    two halves of quanto's 4-bit rows share bytes, so that there a turn makes other rows of them)."""
    folder, conversion = conversions[short]
    shutil.copytree(folder, tmp_path / "stage")
    rewrite(tmp_path / "stage", damage)
    recipe = parse_recipe(short)
    for known in (
        [conversion, Conversion(0, "")]
        if without and (short, damage) != ("quanto-int4", turn_rows)
        else [conversion]
    ):
        checks = check_weights(plan(two_layers, recipe), tmp_path / "stage", known, None).checks
        assert not checks[0].passed
        assert "mlp.up_proj" in checks[0].detail or "mlp.gate_proj" in checks[0].detail


@pytest.mark.parametrize("short", ["quanto-int8", "bnb-int8"])
def test_likeness_to_another_source_does_not_gate(
    short: str,
    conversions: dict[str, tuple[Path, Conversion]],
    two_layers: Checkpoint,
    tmp_path: Path,
) -> None:
    """The file holds what the engine computed, however strange: an engine that says that it computed layer 1
    as layer 0 is believed, unless it also says what it took for its source."""
    shutil.copytree(conversions[short][0], tmp_path / "stage")
    rewrite(tmp_path / "stage", swap_layers)
    work = plan(two_layers, parse_recipe(short))
    computed = Computed()
    for name, values in work.read(tmp_path / "stage"):
        computed.add(name, values)
    checks = check_weights(work, tmp_path / "stage", Conversion(0, "", computed=computed), None).checks
    assert all(check.passed for check in checks)
    likeness = next(check for check in checks if check.name == "likeness to others")
    assert likeness.value == 2
    assert "mlp.up_proj.weight is model.layers." in likeness.detail
    first, second = (f"model.layers.{layer}.mlp.up_proj.weight" for layer in (0, 1))
    computed.took(first, two_layers.read_float32(second))
    checks = check_weights(work, tmp_path / "stage", Conversion(0, "", computed=computed), None).checks
    assert not checks[0].passed
    assert checks[0].detail.startswith(f"{first}: row 0 was quantized from something else than its source")


def test_an_engine_that_takes_the_source_says_so(
    conversions: dict[str, tuple[Path, Conversion]], two_layers: Checkpoint
) -> None:
    computed = conversions["quanto-int4"][1].computed
    assert computed is not None
    assert all(computed.has_source(name) for name in two_layers.tensors)


def failed_check(result: Verification) -> Check:
    return next(check for check in result.checks if not check.passed)


def test_a_missing_tensor(artifacts: dict[str, Artifact], source: Path, tmp_path: Path) -> None:
    def drop(folder: Path) -> None:
        stored = StoredTensors(folder)
        arrays = {name: np.array(stored.raw(name)) for name in stored}
        entries = [Entry(n, i.dtype, i.shape) for n, i in stored.info.items() if n != "model.norm.weight"]
        write_folder(folder, entries, lambda name: arrays[name])

    failed = failed_check(reverify("bnb-nf4", artifacts, source, tmp_path, drop, "tensors"))
    assert failed.name == "weights"
    assert "model.norm.weight" in failed.detail


def test_a_tensor_left_unquantized(artifacts: dict[str, Artifact], source: Path, tmp_path: Path) -> None:
    def undo(folder: Path) -> None:
        stored = StoredTensors(folder)
        arrays = {name: np.array(stored.raw(name)) for name in stored if not name.startswith(f"{LAYER}._")}
        entries = [Entry(n, i.dtype, i.shape) for n, i in stored.info.items() if n in arrays]
        arrays[LAYER] = np.array(open_checkpoint(source).read(LAYER))
        write_folder(folder, [*entries, Entry(LAYER, "BF16", arrays[LAYER].shape)], lambda name: arrays[name])

    failed = failed_check(reverify("quanto-int8", artifacts, source, tmp_path, undo, "tensors"))
    assert failed.name == "types"
    assert failed.detail == f"{LAYER} should be quantized but is not"


@pytest.mark.parametrize("name", ["tokenizer.json", "added_tokens.json"])
def test_another_tokenizer(name: str, artifacts: dict[str, Artifact], source: Path, tmp_path: Path) -> None:
    failed = failed_check(
        reverify(
            "bnb-nf4",
            artifacts,
            source,
            tmp_path,
            lambda folder: (folder / name).write_text("{}") and None,
            "tensors",
        )
    )
    assert failed.name == "tokenizer"
    assert name in failed.detail


def test_another_chat_template(artifacts: dict[str, Artifact], source: Path, tmp_path: Path) -> None:
    def change(folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": "{{ messages }}"}))

    result = reverify("bnb-nf4", artifacts, source, tmp_path, change, "tensors")
    assert {check.name for check in result.checks if not check.passed} == {"tokenizer", "chat template"}


def test_a_runtime_that_computes_something_else(
    artifacts: dict[str, Artifact], source: Path, tmp_path: Path
) -> None:
    """The files are sound and the config makes the runtime read them otherwise: only the logits can tell."""

    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["rope_parameters"]["rope_theta"] = 100.0
        (folder / "config.json").write_text(json.dumps(config))

    failed = failed_check(reverify("quanto-int8", artifacts, source, tmp_path, change, "full"))
    assert failed.name == "logits"
    assert failed.value is not None
    assert failed.tolerance == KL_FLOAT32
    assert failed.value > KL_FLOAT32


def test_a_runtime_that_gives_nan(artifacts: dict[str, Artifact], source: Path, tmp_path: Path) -> None:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        # beyond float32's range
        config["rope_parameters"] = {
            "rope_type": "linear",
            "rope_theta": 1e-30,
            "factor": 1e-12,
        }
        (folder / "config.json").write_text(json.dumps(config))

    failed = failed_check(reverify("bnb-nf4", artifacts, source, tmp_path, change, "full"))
    assert failed.name == "logits"
    assert "logits are NaN or Inf" in failed.detail


def test_a_folder_that_does_not_open(artifacts: dict[str, Artifact], source: Path, tmp_path: Path) -> None:
    failed = failed_check(
        reverify(
            "bnb-nf4",
            artifacts,
            source,
            tmp_path,
            lambda folder: (folder / "config.json").unlink(),
            "tensors",
        )
    )
    assert failed.name == "opens"


GGUF_DAMAGE = ["swap", "lose row", "scale of the neighbour", "another hash"]


@pytest.mark.parametrize("damage", GGUF_DAMAGE)
def test_damage_to_a_gguf_is_noticed(damage: str, source: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from quantize.gguf.container.reader import read_gguf

    recipe = parse_recipe("gguf-q4_k_m")
    work, stage = plan(open_checkpoint(source), recipe), tmp_path / "stage"
    stage.mkdir()
    conversion = work.write(stage, CPU, None)
    (path,) = stage.glob("*.gguf")
    assert all(check.passed for check in check_weights(work, stage, conversion, None).checks)
    file = read_gguf(path)
    data = bytearray(path.read_bytes())
    up, gate = file.tensors["blk.0.ffn_up.weight"], file.tensors["blk.0.ffn_gate.weight"]
    assert up.size_bytes == gate.size_bytes
    a, b = slice(up.offset, up.offset + up.size_bytes), slice(gate.offset, gate.offset + gate.size_bytes)
    if damage == "swap":
        data[a], data[b] = data[b], data[a]
    elif damage == "scale of the neighbour":
        data[up.offset : up.offset + 2] = data[up.offset + 144 : up.offset + 146]
    else:
        row = up.size_bytes // 512
        data[up.offset + 7 * row : up.offset + 8 * row] = bytes(row)
    path.write_bytes(data)
    # As if a faulty writer had hashed what it wrote wrongly: then each tensor's own checksum tells.
    hashed = conversion.sha256 if damage == "another hash" else {path.name: sha256_file(path)}
    result = verify(work, stage, replace(conversion, sha256=hashed), CPU, "tensors")
    failed = failed_check(result)
    assert failed.name == "weights"
    if damage == "swap":
        assert "blk.0.ffn_gate.weight is not what was written under that name; blk.0.ffn_up" in failed.detail
    elif damage == "another hash":
        assert failed.detail == f"{path.name} is not what was written"
    else:
        assert "blk.0.ffn_up.weight is not what was written under that name" in failed.detail


def test_notes_name_what_quanto_lowers_silently(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """288 inputs: groups of 96; 96 inputs: none."""
    folder = make_checkpoint(
        hidden_size=96, intermediate_size=288, num_attention_heads=2, head_dim=48, num_hidden_layers=1
    )
    artifact = convert(folder, "quanto-int4", tmp_path / "a", run=CPU)
    what = {note.tensor: note.what for note in artifact.manifest.notes}
    assert what["model.layers.0.mlp.down_proj.weight"] == "groups of 96 instead of 128"
    assert what["model.layers.0.mlp.up_proj.weight"] == "one scale per row instead of groups of 128"
    assert what["lm_head.weight"] == "kept as BF16"
    assert artifact.manifest.verification.passed


@pytest.mark.parametrize("short", ["quanto-int8:lm_head=true", "quanto-float8", "quanto-int2", "bnb-fp4"])
def test_tied_checkpoints(short: str, make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_checkpoint(tie_word_embeddings=True, num_hidden_layers=1)
    artifact = convert(folder, short, tmp_path / "a", run=CPU)
    assert artifact.manifest.verification.level == "full"
    named = {note.tensor for note in artifact.manifest.notes}
    assert "model.embed_tokens.weight" in named
    assert ("lm_head.weight" in named) == ("lm_head" in short)
