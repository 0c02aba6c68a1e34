"""Every family: a small random model in transformers and its F32 GGUF in llama.cpp give the same logits.

With QUANTWRIGHT_FAMILY_TABLE=docs/gguf-families.md in the environment, a run in which every family passed
writes that page.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from family_cases import CASES, Case, compare, llamacpp_logits, make, write_gguf_f32
from family_table import table

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.gguf.families.base import Mapped
from quantize.gguf.mixture import may_be_quantized

pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' remarks on odd little configs


@pytest.fixture(scope="module")
def seen() -> Iterator[dict[str, float]]:
    """Logit differences of the cases that passed; written as a page where one is asked for and none
    failed."""
    differences: dict[str, float] = {}
    yield differences
    page = os.environ.get("QUANTWRIGHT_FAMILY_TABLE")
    if page and len(differences) == len(CASES):
        Path(page).write_text(table(CASES, differences), encoding="utf-8")


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_logits_equal_transformers(case: Case, tmp_path: Path, seen: dict[str, float]) -> None:
    difference = compare(case, tmp_path)
    assert difference < case.tolerance
    seen[case.name] = difference


@pytest.mark.long
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_every_tensor_shows(case: Case, tmp_path: Path) -> None:
    """The comparison above would notice any one tensor with its rows (or values) in another order."""
    ids = np.random.default_rng(3).integers(1, 160, (1, case.length))
    _, folder = make(case, tmp_path / "hf")
    names = write_gguf_f32(folder, tmp_path / "right.gguf")
    right = llamacpp_logits(tmp_path / "right.gguf", ids)
    rope = case.settings.get("rope_parameters") or {}
    long = case.length > rope.get("original_max_position_embeddings", 0)
    idle = f"rope_factors_{'short' if long else 'long'}.weight"  # LongRoPE's for other contexts
    for name in names:
        if name == idle or (name.startswith("blk.") and name.split(".")[1] not in "01"):
            continue
        write_gguf_f32(folder, tmp_path / "wrong.gguf", spoil=name)
        wrong = llamacpp_logits(tmp_path / "wrong.gguf", ids)
        assert np.abs(wrong - right).max() / right.std() > 2 * case.tolerance, name


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_restore_inverts_build(case: Case, tmp_path: Path) -> None:
    from quantize.gguf.families.plan import plan, restore
    from quantize.sources.opening import open_checkpoint

    _, folder = make(case, tmp_path / "hf")
    checkpoint = open_checkpoint(folder, tokenizer=False)
    tensors = plan(checkpoint).tensors
    built = {m.name: m.build([checkpoint.read_float32(name) for name in m.sources]) for m in tensors}
    assert {m.name: m.shape for m in tensors} == {name: array.shape for name, array in built.items()}
    for mapped in tensors:
        _check_columns(mapped, checkpoint)
        _check_entries(mapped, checkpoint, built[mapped.name])
    restored = dict(restore(tensors, built.__getitem__))
    assert set(restored) == set(checkpoint.tensors) - plan(checkpoint).left_out
    moved = {name for m in tensors if m.pure for name in m.sources}
    for name, array in restored.items():
        source = checkpoint.read_float32(name)
        if "lm_head" in name and case.hf_class == "BaichuanForCausalLM":  # comes back with rows of length one
            source = source / np.linalg.norm(source, axis=1, keepdims=True)
        # Gemma's 1 + w - 1 rounds; what only moves comes back bit for bit.
        assert np.array_equal(array, source) if name in moved else np.abs(array - source).max() < 2e-7, name


def _check_columns(mapped: Mapped, checkpoint: Checkpoint) -> None:
    """What a family says of the order of columns (importances follow it) is what ``build`` does."""
    shapes = [checkpoint.tensors[name].shape for name in mapped.sources]
    if not (mapped.pure and mapped.sources and may_be_quantized(mapped.name, mapped.shape)):
        return
    numbers = [np.broadcast_to(np.arange(shape[-1], dtype=np.int32), shape) for shape in shapes]
    rows = mapped.build(numbers).reshape(-1, mapped.shape[-1])
    turned = (rows == rows[:, :1]).all()  # stored input-first: the numbers are those of outputs
    order = np.arange(mapped.shape[-1]) if mapped.columns is None else mapped.columns
    assert turned or (rows == order).all(), mapped.name


def _check_entries(mapped: Mapped, checkpoint: Checkpoint, built: np.ndarray) -> None:
    """An expert's matrix built by itself is that of the whole."""
    if mapped.of_entry is None:
        return
    sources = [checkpoint.read_float32(name) for name in mapped.sources]
    entries = sources if len(sources) > 1 else sources[0]
    one_by_one = np.stack([mapped.of_entry.build([entry]) for entry in entries])
    assert np.array_equal(one_by_one, built), mapped.name


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_defaults_are_those_of_the_config_class(case: Case) -> None:
    """A config may leave keys out; what is assumed then is what transformers assumes."""
    from types import SimpleNamespace

    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if case.rewrite:
        pytest.skip("not in transformers")
    from importlib import import_module

    from quantize.gguf.families.config import Hyperparameters
    from quantize.gguf.families.plan import KNOWN
    from quantize.gguf.families.rope import read_rope

    family = import_module(f"quantize.gguf.families.{KNOWN[case.hf_class]}").family(
        SimpleNamespace(architecture=case.hf_class, config=case.settings)
    )
    kind = {key: case.settings[key] for key in case.settings if key == "model_type"}
    given = {"text_config": kind} if case.vision is not None and kind else {}
    config = CONFIG_MAPPING[case.model_type](**given).get_text_config().to_dict()
    rope = config.get("rope_parameters") or {}
    theirs, ours = Hyperparameters(config, {}), Hyperparameters({}, family.defaults)
    for key, value in family.defaults.items():
        if key in ("rope_theta", "partial_rotary_factor"):
            assert rope.get("full_attention", rope)[key] == getattr(read_rope(ours), ROPE[key]), key
        elif key == "rope_local_base_freq":
            assert rope["sliding_attention"]["rope_theta"] == value
        else:
            assert theirs.find(key, *SPELLINGS.get(key, ())) == (
                value if value is not None else theirs.find(key)
            ), key


ROPE = {"rope_theta": "theta", "partial_rotary_factor": "partial"}
SPELLINGS = {"num_experts": ("num_local_experts",)}
