"""Merging a LoRA while streaming gives what peft's merge_and_unload gives."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoder_cases import make_decoder
from family_cases import CASES, Case, make, write_gguf_f32
from lazily import same_tensors

from quantize.checkpoint.materialised import materialised
from quantize.errors import BadInput, StepFailed, Unsupported
from quantize.sources.adapter import open_adapter
from quantize.sources.merged import merge_adapter
from quantize.sources.opening import open_checkpoint

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")
BY_NAME = {case.name: case for case in CASES}
LLAMA, TIED, GPT2 = BY_NAME["Llama 2"], BY_NAME["Llama 3.2 (tied)"], BY_NAME["GPT-2"]


def add_tokenizer(folder: Path) -> None:
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def make_adapter(case: Case, folder: Path, **settings: Any) -> tuple[Path, Path, dict[str, np.ndarray]]:
    """-> (base folder, adapter folder, peft's merged weights by the base's names)."""
    import torch
    from peft import LoraConfig, get_peft_model

    model, base = make(case, folder / "base")
    add_tokenizer(base)
    adapted = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "lora_alpha": 8, **settings})
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    adapted.save_pretrained(folder / "lora")
    merged = adapted.merge_and_unload().state_dict()
    return base, folder / "lora", {name: tensor.float().numpy() for name, tensor in merged.items()}


@pytest.mark.parametrize(
    ("case", "settings"),
    [
        (LLAMA, {"target_modules": ["q_proj", "v_proj", "down_proj"]}),
        (
            LLAMA,
            {
                "target_modules": ["q_proj", "k_proj", "up_proj"], "use_rslora": True,
                "rank_pattern": {"k_proj": 8},
                "alpha_pattern": {r"layers.1.self_attn.q_proj": 32},
            },
        ),
        (LLAMA, {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]}),
        (LLAMA, {"target_modules": ["o_proj", "gate_proj"], "use_dora": True}),
        (TIED, {"target_modules": ["v_proj"]}),
        (GPT2, {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
        (GPT2, {"target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "lora_only"}),
    ],
    ids=["plain", "rslora and patterns", "embedding and head", "dora", "tied", "input-first", "bias"],
)  # fmt: skip
def test_equals_peft(case: Case, settings: dict[str, Any], tmp_path: Path) -> None:
    base, lora, expected = make_adapter(case, tmp_path, **settings)
    source = open_checkpoint(base)
    merged = merge_adapter(source, lora)
    assert merged.source == f"{base}+lora"
    assert set(merged.tensors) == set(source.tensors)
    with materialised(merged, tmp_path) as folder:
        same_tensors(open_checkpoint(folder), merged)
    changed = 0
    for name in merged.tensors:
        got = merged.read_float32(name)
        assert np.abs(got - expected[name]).max() < 1e-5, name
        changed += not np.array_equal(got, source.read_float32(name))
    assert changed >= 2  # and the rest is the base, bit for bit
    untouched = (
        set(merged.tensors)
        - set(open_adapter(lora, source).deltas)
        - set(open_adapter(lora, source).replaced)
    )
    assert all(np.array_equal(merged.read(name), source.read(name)) for name in untouched)
    for name in merged.tensors:
        entry = merged.entries(name)
        assert (entry is not None) == (name in untouched), name
        assert entry is None or np.array_equal(entry(1), merged.read(name)[1]), name


def test_a_base_that_is_a_gguf(tmp_path: Path) -> None:
    """Both are read lazily: what comes out is what the same base in a folder gives."""
    base, lora, expected = make_adapter(LLAMA, tmp_path, target_modules=["q_proj", "embed_tokens"])
    write_gguf_f32(base, tmp_path / "base.gguf")
    merged = merge_adapter(open_checkpoint(tmp_path / "base.gguf"), lora)
    for name in merged.tensors:
        assert np.abs(merged.read_float32(name) - expected[name]).max() < 1e-5, name
    with materialised(merged, tmp_path) as folder:
        same_tensors(open_checkpoint(folder), merged)


def test_an_adapter_with_nan_is_said_when_it_is_read(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    base, lora, _ = make_adapter(LLAMA, tmp_path, target_modules=["q_proj"])
    tensors = load_file(lora / "adapter_model.safetensors")
    name = next(name for name in tensors if "layers.1" in name and "lora_B" in name)
    save_file(tensors | {name: tensors[name] * torch.nan}, lora / "adapter_model.safetensors")
    merged = merge_adapter(open_checkpoint(base), lora)
    assert np.isfinite(merged.read_float32("model.layers.0.self_attn.q_proj.weight")).all()
    with pytest.raises(StepFailed, match=r"layers\.1.*lora_B.*holds NaN or Inf"):
        merged.check_finite()


def combinations() -> list[tuple[bool, bool, tuple[str, ...], tuple[str, ...]]]:
    """(tied, ensure_weight_tying, target modules, modules to save): every way to train embedding and head."""
    out = []
    for tied, ensured in ((True, False), (True, True), (False, False)):
        for targets in ((), ("embed_tokens",), ("lm_head",), ("embed_tokens", "lm_head")):
            for whole in ((), ("embed_tokens",), ("lm_head",), ("embed_tokens", "lm_head")):
                # peft makes none of these
                if not set(targets) & set(whole) and not (ensured and targets and whole):
                    out.append((tied, ensured, targets, whole))
    return out


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_equals_peft_running_it(tied: bool, tmp_path: Path) -> None:
    """Not peft's merge, which changes a tied head with the embedding: the model with the adapter in it."""

    _, base = make(TIED if tied else LLAMA, tmp_path / "base")
    add_tokenizer(base)
    seen = set()
    for number, (_, ensured, targets, whole) in enumerate(c for c in combinations() if c[0] == tied):
        settings = {
            "target_modules": ["q_proj", *targets],
            "modules_to_save": list(whole) or None,
            "ensure_weight_tying": ensured,
        }
        names = running_and_merged_agree(base, tmp_path / f"lora{number}", settings)
        seen.add("lm_head.weight" in names)
    assert seen == ({True, False} if tied else {True})


@pytest.mark.parametrize(
    ("tied", "settings"),
    [
        (True, {"target_modules": ["q_proj"]}),
        (True, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
        (True, {"target_modules": ["q_proj", "embed_tokens"]}),
        (True, {"target_modules": ["q_proj", "lm_head"]}),
        (False, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
        (False, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    ],
)
def test_equals_peft_running_it_on_a_larger_vocabulary(
    tied: bool, settings: dict[str, Any], tmp_path: Path
) -> None:
    _, base = make(TIED if tied else LLAMA, tmp_path / "base")
    add_tokenizer(base)
    running_and_merged_agree(base, tmp_path / "lora", settings, more_rows=8)


def test_half_of_a_larger_vocabulary_is_refused(tmp_path: Path) -> None:
    """peft does not save the head that it does not train, and its rows are nowhere."""
    _, base = make(LLAMA, tmp_path / "base")
    add_tokenizer(base)
    with pytest.raises(
        Unsupported, match=r"another vocabulary.*lm_head\.weight 160, model\.embed_tokens\.weight 168"
    ):
        running_and_merged_agree(
            base, tmp_path / "lora", {"target_modules": ["q_proj", "embed_tokens"]}, more_rows=8
        )


@pytest.mark.parametrize("order", [["c_attn", "c_proj", "lm_head"], ["lm_head", "c_attn", "c_proj"]])
def test_layers_stored_input_first_beside_a_head_that_is_not(order: list[str], tmp_path: Path) -> None:
    """attn.c_proj is square: its orientation is told by the architecture, not by a flag that holds for one of
    the two."""
    _, base = make(GPT2, tmp_path / "base")
    add_tokenizer(base)
    for flag in (True, False):
        settings = {"target_modules": order, "fan_in_fan_out": flag}
        assert "lm_head.weight" in running_and_merged_agree(base, tmp_path / f"lora{flag}", settings)


def running_and_merged_agree(
    base: Path, lora: Path, settings: dict[str, Any], more_rows: int = 0
) -> set[str]:
    """Trains at random, saves, and compares logits; -> the names of the merged checkpoint's tensors."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    def opened(folder: Path, more: int = 0) -> Any:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        if more:
            torch.manual_seed(2)
            model.resize_token_embeddings(model.config.vocab_size + more, mean_resizing=False)
        return model.eval()

    ids = torch.arange(3, 40)[None]
    adapted = get_peft_model(
        opened(base, more_rows), LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, **settings)
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape))
        adapted.save_pretrained(lora)
        expected = PeftModel.from_pretrained(opened(base, more_rows), lora).eval()(ids).logits
        merged = merge_adapter(open_checkpoint(base), lora)
        with materialised(merged, lora) as folder:
            got = opened(folder)(ids).logits
            same_tensors(open_checkpoint(folder), merged)
    assert (got - expected).abs().max() < 1e-3 * expected.std(), settings
    return set(merged.tensors)


@pytest.mark.parametrize(
    ("model_type", "targets"),
    [
        ("nemotron_h", ["q_proj", "o_proj", "in_proj", "up_proj"]),
        ("mixtral", ["q_proj", "o_proj", "lm_head"]),
    ],
)
def test_a_base_that_transformers_renames_or_merges(
    model_type: str, targets: list[str], tmp_path: Path
) -> None:
    """Nemotron-H is ``backbone`` in the files and ``model`` once loaded; Mixtral's experts are stacked then.
    What the LoRA trains lies beside."""
    base = make_decoder(model_type, tmp_path / "base")
    names = running_and_merged_agree(base, tmp_path / "lora", {"target_modules": targets})
    assert names == set(open_checkpoint(base).tensors)


def test_what_transformers_merges_when_it_loads_it_is_refused(tmp_path: Path) -> None:
    """Before any weight is read, by what was trained: the whole of a layer's stacked experts, as peft would
    call it, or parameters of it."""
    from safetensors.torch import save_file

    base = make_decoder("mixtral", tmp_path / "base")
    source = open_checkpoint(base)
    lora = tmp_path / "lora"
    lora.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "modules_to_save": ["experts"]}
    (lora / "adapter_config.json").write_text(json.dumps(config))
    import torch

    name = "base_model.model.model.layers.0.mlp.experts.down_proj"
    save_file({name: torch.zeros(4, 64, 32)}, lora / "adapter_model.safetensors")
    with pytest.raises(
        Unsupported,
        match=r"trains model\.layers\.0\.mlp\.experts\.down_proj, which transformers makes of .*w2",
    ):
        open_adapter(lora, source)


def test_bfloat16_base_is_rounded_once(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    base, lora, expected = make_adapter(LLAMA, tmp_path, target_modules=["q_proj"])
    file = base / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file)
    source = open_checkpoint(base)
    merged = merge_adapter(source, lora)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert merged.tensors[name].dtype == "BF16"
    # of the unrounded base: off by its rounding
    delta = expected[name] - open_checkpoint(base).read_float32(name)
    a, b = (
        load_file(lora / "adapter_model.safetensors")[f"base_model.model.{name[:-7]}.lora_{x}.weight"]
        for x in "AB"
    )
    exact = torch.from_numpy(source.read_float32(name)) + 2.0 * (b @ a)
    assert torch.equal(torch.from_numpy(merged.read_float32(name)), exact.bfloat16().float())
    assert np.abs(delta).max() > 0.01


def test_a_lora_for_another_base_is_bad_input(tmp_path: Path) -> None:
    base, lora, _ = make_adapter(LLAMA, tmp_path, target_modules=["q_proj"])
    wider, deeper = tmp_path / "wider", tmp_path / "gpt2"
    make(Case("wider", "llama", {"hidden_size": 96, "num_key_value_heads": 4}), wider)
    make(GPT2, deeper)
    for folder in (wider, deeper):
        add_tokenizer(folder)
    with pytest.raises(BadInput, match=r"lora_A.*\[4, 64\].*\[96, 96\].*a LoRA for another base"):
        merge_adapter(open_checkpoint(wider), lora)
    with pytest.raises(BadInput, match=r"no counterpart.*a LoRA for another base"):
        merge_adapter(open_checkpoint(deeper), lora)
    assert base.is_dir()


def test_refusals(tmp_path: Path) -> None:
    base, lora, _ = make_adapter(LLAMA, tmp_path, target_modules=["q_proj"])
    source = open_checkpoint(base)
    original = json.loads((lora / "adapter_config.json").read_text())

    def with_config(**changes: Any) -> Path:
        (lora / "adapter_config.json").write_text(json.dumps({**original, **changes}))
        return lora

    with pytest.raises(BadInput, match=r"no adapter_config\.json"):
        open_adapter(base, source)
    with pytest.raises(Unsupported, match="type IA3"):
        open_adapter(with_config(peft_type="IA3"), source)
    with pytest.raises(Unsupported, match="pissa"):
        open_adapter(with_config(init_lora_weights="pissa_niter_4"), source)
    with pytest.raises(Unsupported, match="target_parameters"):
        open_adapter(with_config(target_parameters=["mlp.experts.gate_up_proj"]), source)
    with pytest.raises(BadInput, match="r is 0"):
        open_adapter(with_config(r=0), source)
    with_config()
    shutil.move(lora / "adapter_model.safetensors", lora / "adapter_model.bin")
    with pytest.raises(BadInput, match="pickle"):
        open_adapter(lora, source)
