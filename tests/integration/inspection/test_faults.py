"""Well-known ways in which quantized files are wrong: each is planted and found by its name and place, and
what this program's methods make raises no alarm."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf.quants import dequantize
from spoiled import Arrays, edit, spoil

from quantize import convert
from quantize.artifact.artifact import Artifact
from quantize.gguf.container.files import find_gguf
from quantize.gguf.container.reader import read_gguf
from quantize.inspection.against_source import (
    ROPE,
    SPLITS,
    TWICE,
    setting_problems,
    template_problems,
    tokenizer_problems,
    weight_problems,
)
from quantize.inspection.description import describe
from quantize.inspection.likeness import ANOTHERS, MISGROUPED, NO_LIKENESS, WRONG_SIDE
from quantize.inspection.opening import look
from quantize.inspection.reading import open_reading
from quantize.inspection.scales import FOR_CPU, OFF_BY_ONE, UNINITIALISED
from quantize.numerics.packing import pack_bits, unpack_bits
from quantize.recipe import RunOptions
from quantize.sources.opening import open_checkpoint

RUN = RunOptions(device="cpu", threads=1, progress=False)
Q = "model.layers.0.self_attn.q_proj"
UP = "model.layers.0.mlp.up_proj"
Make = Callable[[str], Artifact]


def problems(folder: Path, source: Path | None, scratch: Path) -> dict[str, str]:
    """What is wrong -> why; of weights, settings, template and tokenizer."""
    scratch.mkdir(parents=True, exist_ok=True)
    checkpoint = open_checkpoint(source) if source is not None else None
    gguf = find_gguf(folder)
    found = describe(look(str(folder))).problems
    reading = open_reading(folder, gguf, checkpoint, scratch)
    found += tuple(weight_problems(reading, checkpoint, lambda name, values: None).problems)
    if checkpoint is not None:
        found += tuple(setting_problems(reading, checkpoint)) + tuple(template_problems(reading, checkpoint))
        found += tuple(tokenizer_problems(folder, checkpoint)) if gguf is None else ()
    wrong: dict[str, str] = {}
    for problem in found:
        if problem.level == "wrong":
            wrong[problem.what] = " | ".join(filter(None, (wrong.get(problem.what), problem.why)))
    return wrong


GOOD = [
    ("gguf-q4_k_m", ""),
    ("gguf-q2_k", ""),
    ("gguf-bf16", ""),
    ("rtn-int4", ""),
    ("gptq:bits=2,group_size=64,sym=false,engine=native", ""),
    ("rtn-int4:format=awq", ""),
    ("quanto-int8", "optimum.quanto"),
    ("quanto-int2", "optimum.quanto"),
    ("quanto-int8:lm_head=true", "optimum.quanto"),
    ("bnb-nf4", "bitsandbytes"),
    ("bnb-int8", "bitsandbytes"),
    ("torchao-int8:group_size=32", "torchao"),
    ("ct-w4a16", ""),
    ("ct-nvfp4a16", ""),
    ("ct-mxfp4a16", ""),
    ("ct-fp8-dynamic", ""),
    ("bfloat16", ""),
]


@pytest.mark.parametrize(("short", "needs"), GOOD)
def test_no_alarm(source: Path, made: Make, short: str, needs: str, tmp_path: Path) -> None:
    if needs:
        pytest.importorskip(needs)
    folder = made(short).folder
    assert problems(folder, source, tmp_path / "a") == {}
    assert problems(folder, None, tmp_path / "b") == {}


def test_saved_but_not_quantized(source: Path, made: Make, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "model"))
    said = json.loads((made("rtn-int4").folder / "config.json").read_text())["quantization_config"]
    edit(folder, "config.json", quantization_config=said)
    found = problems(folder, source, tmp_path / "a")
    assert found == {"not quantized": "it says gptq, and every matrix is stored as BF16"}


def test_a_gguf_that_is_not_what_its_type_says(source: Path, made: Make, tmp_path: Path) -> None:
    path = made("gguf-bf16").gguf
    assert path is not None
    raw = bytearray(path.read_bytes())
    at = raw.index(b"general.file_type") + len(b"general.file_type") + 4
    raw[at] = 15
    (tmp_path / "m-Q4_K_M.gguf").write_bytes(raw)
    found = problems(tmp_path / "m-Q4_K_M.gguf", source, tmp_path / "a")
    assert "every matrix is stored as BF16" in found["not quantized"]
    assert "MOSTLY_Q4_K_M" in found["not quantized"]


@pytest.mark.parametrize("short", ["rtn-int4", "rtn-int4:sym=false", "rtn-int4:format=awq,sym=false"])
@pytest.mark.parametrize("by", [1, -1])
def test_zero_points_of_the_other_version(
    source: Path, made: Make, short: str, by: int, tmp_path: Path
) -> None:
    """GPTQ's v2 stores what v1 stores less one."""

    def change(arrays: Arrays) -> None:
        for name in [name for name in arrays if name.endswith(".qzeros")]:
            codes = unpack_bits(np.ascontiguousarray(arrays[name].T), 4).astype(np.int32)
            arrays[name] = np.ascontiguousarray(pack_bits(np.clip(codes + by, 0, 15).astype(np.uint8), 4).T)

    folder = spoil(made(short).folder, tmp_path / "model", change)
    found = problems(folder, source, tmp_path / "a")
    assert set(found) == {OFF_BY_ONE}
    assert found[OFF_BY_ONE].startswith("model.layers.0.")
    assert "(and 6 more)" in found[OFF_BY_ONE]
    if short == "rtn-int4":  # symmetric: known without a source
        alone = problems(folder, None, tmp_path / "b")
        assert set(alone) == {OFF_BY_ONE}
        assert f"zero points read as {8 + by}" in alone[OFF_BY_ONE]


def test_version_2_of_gptq(source: Path, made: Make, tmp_path: Path) -> None:
    """What GPTQModel writes as gptq_v2 is read as that; and is off by one where it is said to be v1's."""

    def change(arrays: Arrays) -> None:
        for name in [name for name in arrays if name.endswith(".qzeros")]:
            codes = unpack_bits(np.ascontiguousarray(arrays[name].T), 4)
            arrays[name] = np.ascontiguousarray(pack_bits(codes + 1, 4).T)

    for short in ("rtn-int4", "rtn-int4:sym=false"):
        folder = made(short).folder
        config = json.loads((folder / "config.json").read_text())["quantization_config"]
        newer = {**config, "checkpoint_format": "gptq_v2", "format": "gptq_v2"}
        good = spoil(folder, tmp_path / f"{short}-good", change)
        edit(good, "config.json", quantization_config=newer)
        assert problems(good, source, tmp_path / f"{short}-a") == {}
        bad = Path(shutil.copytree(folder, tmp_path / f"{short}-bad"))
        edit(bad, "config.json", quantization_config=newer)
        assert set(problems(bad, source, tmp_path / f"{short}-b")) == {OFF_BY_ONE}


@pytest.mark.parametrize("short", ["bnb-nf4", "bnb-nf4:double_quant=true"])
def test_bitsandbytes_saved_after_a_forward_pass_on_a_cpu(
    source: Path, made: Make, short: str, tmp_path: Path
) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    import torch

    def change(arrays: Arrays) -> None:
        """As ``Linear4bit`` of bitsandbytes 0.49 saved what its first forward pass had packed."""
        for weight in (f"{Q}.weight", f"{UP}.weight"):
            state = {
                name.removeprefix(f"{weight}."): torch.from_numpy(arrays.pop(name))
                for name in list(arrays)
                if name.startswith(f"{weight}.")
            }
            made = functional.QuantState.from_dict(dict(state), device=torch.device("cpu"))
            codes = torch.from_numpy(arrays[weight])
            packed, moved = functional._convert_weight_packed_for_cpu(codes, made)
            arrays[weight] = packed.numpy()
            for name, value in moved.as_dict(packed=True).items():
                bits = value.view(torch.int16).numpy().view(np.uint16) if name == "absmax" else value.numpy()
                arrays[f"{weight}.{name}"] = bits

    folder = spoil(made(short).folder, tmp_path / "model", change)
    for where in (source, None):
        found = problems(folder, where, tmp_path / str(where is None))
        assert set(found) == {FOR_CPU}
        assert found[FOR_CPU].startswith((f"{UP}.weight: ", f"{Q}.weight: "))
        assert "absmax has shape [4, 256]" in found[FOR_CPU] or "[4, 512]" in found[FOR_CPU]


def test_groups_of_inputs_in_another_order(source: Path, made: Make, tmp_path: Path) -> None:
    """Act-order sorts inputs before it groups them, and says in g_idx where each went; here nothing does."""
    weights = open_checkpoint(source).read_float32(f"{UP}.weight")
    order = np.random.default_rng(0).permutation(weights.shape[1])
    groups = np.empty(len(order), np.int32)
    groups[order] = np.arange(len(order)) // 32

    def packed(arrays: Arrays, index: np.ndarray) -> None:
        size = np.stack([np.abs(weights[:, groups == g]).max(1) for g in range(len(order) // 32)])
        scales = (size / 7).astype(np.float16)
        codes = np.clip(np.rint(weights.T / scales.astype(np.float32)[groups]) + 8, 0, 15).astype(np.uint8)
        arrays[f"{UP}.qweight"], arrays[f"{UP}.scales"] = pack_bits(codes, 4), scales
        sevens = np.full((weights.shape[0], len(scales)), 7, np.uint8)
        arrays[f"{UP}.qzeros"] = np.ascontiguousarray(pack_bits(sevens, 4).T)
        arrays[f"{UP}.g_idx"] = index

    short = "rtn-int4:group_size=32"
    good = spoil(made(short).folder, tmp_path / "good", lambda arrays: packed(arrays, groups))
    assert problems(good, source, tmp_path / "a") == {}
    trivial = (np.arange(len(order)) // 32).astype(np.int32)
    bad = spoil(made(short).folder, tmp_path / "bad", lambda arrays: packed(arrays, trivial))
    found = problems(bad, source, tmp_path / "b")
    assert set(found) == {MISGROUPED}
    assert found[MISGROUPED].startswith(f"{UP}.weight: of ")


@pytest.fixture(scope="module")
def experts(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=4096, hidden_size=64, intermediate_size=64, moe_intermediate_size=64, num_hidden_layers=1,
        head_dim=32, num_attention_heads=2, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2,
        decoder_sparse_step=1, max_position_embeddings=128, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        norm_topk_prob=True,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("experts") / "source"
    Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_checkpoint / name, folder / name)
    return folder


def test_experts_that_changed_places_or_were_left_as_they_began(experts: Path, tmp_path: Path) -> None:
    short = "rtn-int4:group_size=32"
    good = convert(experts, short, tmp_path / "good", verify="none", run=RUN).folder
    assert problems(good, experts, tmp_path / "a") == {}

    def swap(arrays: Arrays) -> None:
        for name in [name for name in arrays if ".experts.1." in name]:
            other = name.replace(".experts.1.", ".experts.2.")
            arrays[name], arrays[other] = arrays[other], arrays[name]

    found = problems(spoil(good, tmp_path / "swapped", swap), experts, tmp_path / "b")
    place = "model.layers.0.mlp.experts"
    assert set(found) == {ANOTHERS}
    assert f"{place}.1.down_proj.weight: is {place}.2.down_proj.weight of its source" in found[ANOTHERS]

    def initial(arrays: Arrays) -> None:
        codes = arrays[f"{place}.3.up_proj.qweight"]
        random = np.random.default_rng(1).integers(0, 16, (64, 64)).astype(np.uint8)
        assert codes.shape == (8, 64)
        arrays[f"{place}.3.up_proj.qweight"] = pack_bits(random, 4)

    found = problems(spoil(good, tmp_path / "initial", initial), experts, tmp_path / "c")
    assert set(found) == {NO_LIKENESS}
    assert f"{place}.3.up_proj.weight: " in found[NO_LIKENESS]


def test_experts_of_a_gguf_that_changed_places(experts: Path, tmp_path: Path) -> None:
    def swap(arrays: Arrays) -> None:
        one, two = (f"model.layers.0.mlp.experts.{number}.up_proj.weight" for number in (1, 2))
        arrays[one], arrays[two] = arrays[two], arrays[one]

    other = spoil(experts, tmp_path / "other", swap)
    made = convert(other, "gguf-q8_0", tmp_path / "made", verify="none", run=RUN)
    found = problems(made.folder, experts, tmp_path / "a")
    assert set(found) == {ANOTHERS}
    assert "experts.1.up_proj.weight: is model.layers.0.mlp.experts.2.up_proj.weight" in found[ANOTHERS]
    assert problems(made.folder, other, tmp_path / "b") == {}


def test_a_tied_head_that_was_quantized_twice(source: Path, made: Make, tmp_path: Path) -> None:
    """The output of a file whose embedding has four bits, made of that embedding: six bits are named, four
    are left."""
    checkpoint = open_checkpoint(source)
    embedding = checkpoint.read_float32("model.embed_tokens.weight")
    quantized = convert(
        source, "gguf-q8_0:token_embedding_type=q4_0", tmp_path / "q4", verify="none", run=RUN
    )
    assert quantized.gguf is not None
    tensor = read_gguf(quantized.gguf)
    raw = tensor.raw("token_embd.weight")
    left = dequantize(raw, tensor.tensors["token_embd.weight"].kind).reshape(embedding.shape)

    def untie(weights: np.ndarray, name: str) -> Path:
        def change(arrays: Arrays) -> None:
            bits = np.ascontiguousarray(weights, np.float32).view(np.uint32)
            arrays["lm_head.weight"] = (bits >> 16).astype(np.uint16)

        folder = spoil(source, tmp_path / name, change)
        edit(folder, "config.json", tie_word_embeddings=False)
        recipe = "gguf-q8_0:token_embedding_type=q4_0,output_type=q6_k"
        return convert(folder, recipe, tmp_path / f"{name}-made", verify="none", run=RUN).folder

    found = problems(untie(left, "twice"), source, tmp_path / "a")
    assert set(found) == {TWICE}
    assert found[TWICE].startswith("lm_head.weight: it is nearer to the quantized model.embed_tokens.weight")
    assert problems(untie(embedding, "once"), source, tmp_path / "b") == {}


@pytest.mark.parametrize(
    ("short", "scale", "said"),
    [
        ("ct-nvfp4a16", "weight_global_scale", "its weight_global_scale is"),
        ("ct-fp8-dynamic", "weight_scale", "times its source's"),
        ("ct-w4a16", "weight_scale", "times its source's"),
    ],
)
def test_a_scale_on_the_wrong_side(
    source: Path, made: Make, short: str, scale: str, said: str, tmp_path: Path
) -> None:
    def change(arrays: Arrays) -> None:
        """What multiplies is stored where the format divides, or the other way round."""
        name = f"{UP}.{scale}"
        values = arrays[name]
        if values.dtype == np.uint16:
            wide = (values.astype(np.uint32) << 16).view(np.float32)
            arrays[name] = ((1 / wide).view(np.uint32) >> 16).astype(np.uint16)
        else:
            arrays[name] = (1 / values).astype(values.dtype)

    found = problems(spoil(made(short).folder, tmp_path / "model", change), source, tmp_path / "a")
    assert set(found) == {WRONG_SIDE}
    assert found[WRONG_SIDE].startswith(f"{UP}.weight: values are ")
    assert said in found[WRONG_SIDE]


def zeros(values: np.ndarray) -> None:
    values[:] = 0


def ones(values: np.ndarray) -> None:
    values[:] = 0x3F80 if values.dtype == np.uint16 else 1


def not_a_number(values: np.ndarray) -> None:
    values.reshape(-1)[3] = 0x7FC0 if values.dtype == np.uint16 else np.nan


def garbage(values: np.ndarray) -> None:
    random = np.exp(np.random.default_rng(0).normal(0, 2.5, values.shape)).astype(np.float32) * 0.003
    values[:] = (random.view(np.uint32) >> 16).astype(np.uint16) if values.dtype == np.uint16 else random


@pytest.mark.parametrize("damage", [zeros, ones, not_a_number, garbage])
@pytest.mark.parametrize(
    ("short", "needs", "scale"),
    [
        ("rtn-int4:group_size=32", "", f"{UP}.scales"),
        ("rtn-int4:format=awq,group_size=32", "", f"{UP}.scales"),
        ("ct-w4a16:group_size=32", "", f"{UP}.weight_scale"),
        ("quanto-int8", "optimum.quanto", f"{UP}.weight._scale"),
        ("bnb-nf4", "bitsandbytes", f"{UP}.weight.absmax"),
        ("bnb-int8", "bitsandbytes", f"{UP}.SCB"),
    ],
)
def test_scales_that_nobody_has_set(
    source: Path,
    made: Make,
    short: str,
    needs: str,
    scale: str,
    damage: Callable[[np.ndarray], None],
    tmp_path: Path,
) -> None:
    if needs:
        pytest.importorskip(needs)
    if damage is garbage and "awq" in short:
        pytest.skip("where scales move between tensors, wrong sizes of a tensor tell nothing")
    if short == "bnb-nf4":
        short = "bnb-nf4:double_quant=false"
    folder = spoil(made(short).folder, tmp_path / "model", lambda arrays: damage(arrays[scale]))
    found = problems(folder, source, tmp_path / "a")
    assert len(found) == 1
    what, why = next(iter(found.items()))
    assert what == UNINITIALISED or (damage is garbage and what in (WRONG_SIDE, NO_LIKENESS))
    assert why.startswith(f"{UP}.weight: ")
    if damage is not garbage:
        assert set(problems(folder, None, tmp_path / "b")) >= {UNINITIALISED}


def test_rope_of_a_folder(source: Path, made: Make, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made("rtn-int4").folder, tmp_path / "model"))
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    edit(folder, "config.json", rope_parameters=rope)
    found = problems(folder, source, tmp_path / "a")
    assert set(found) == {ROPE}
    assert "is linear, its source's default" in found[ROPE] or "factor is 4.0" in found[ROPE]


def test_rope_of_a_gguf(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    scaled = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64, "rope_theta": 500000.0,
    }  # fmt: skip
    source = make_checkpoint(num_hidden_layers=1, rope_parameters=scaled)
    good = convert(source, "gguf-q8_0", tmp_path / "good", verify="none", run=RUN)
    assert problems(good.folder, source, tmp_path / "a") == {}
    for name, parameters in (
        ("theta", {**scaled, "rope_theta": 10000.0}),
        ("none", {"rope_type": "default", "rope_theta": 500000.0}),
        ("factor", {**scaled, "factor": 4.0}),
    ):
        other = Path(shutil.copytree(source, tmp_path / name))
        edit(other, "config.json", rope_parameters=parameters)
        made = convert(other, "gguf-q8_0", tmp_path / f"{name}-made", verify="none", run=RUN)
        found = problems(made.folder, source, tmp_path / f"{name}-scratch")
        assert set(found) == {ROPE}
        said = {
            "theta": "rope.freq_base is 10000",
            "none": "rope_freqs.weight is missing",
            "factor": "factors",
        }
        assert said[name] in found[ROPE]


def test_a_chat_template_that_is_gone(source: Path, tmp_path: Path) -> None:
    chat = Path(shutil.copytree(source, tmp_path / "chat"))
    (chat / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    for short in ("rtn-int4", "gguf-q8_0"):
        good = convert(chat, short, tmp_path / short, verify="none", run=RUN).folder
        assert problems(good, chat, tmp_path / f"{short}-a") == {}
        bare = convert(source, short, tmp_path / f"{short}-bare", verify="none", run=RUN).folder
        found = problems(bare, chat, tmp_path / f"{short}-b")
        assert found == {"no chat template": "default: its source has one"}


def test_a_tokenizer_whose_vocabulary_is_in_another_order(source: Path, made: Make, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made("rtn-int4").folder, tmp_path / "model"))
    data = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = data["model"]["vocab"]
    words = sorted(vocabulary, key=lambda word: vocabulary[word])
    one, two = words[300], words[301]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (folder / "tokenizer.json").write_text(json.dumps(data))
    found = problems(folder, source, tmp_path / "a")
    assert set(found) == {SPLITS}
    assert " texts differ; " in found[SPLITS]
