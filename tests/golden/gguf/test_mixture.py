"""The type of every tensor, against llama.cpp's own choice (a dry run of its quantizer over files that are
all header)."""

import re
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFValueType as V

from benchmarks.peers.llama_quantize import quantize_file
from quantize.gguf.container.writer import Planned, header, padded
from quantize.gguf.mixture import ModelShape, Overrides, Spec, choose_types, lossless_type
from quantize.kernels import llamacpp
from quantize.kernels.block_types import FILE_TYPES, Type

# architecture, layers, heads, kv heads, experts, columns of most tensors, fused qkv, untied head, extra
# hyperparameters
RMS = {"attention.layer_norm_rms_epsilon": (1e-5, V.FLOAT32)}
MOE = {**RMS, "expert_used_count": (2, V.UINT32), "expert_feed_forward_length": (256, V.UINT32)}
MODELS = {
    "llama-7b": ("llama", 32, 8, 8, 0, 512, False, True, RMS),
    "llama-8b": ("llama", 32, 8, 2, 0, 512, False, True, RMS),
    "llama-70b": ("llama", 80, 8, 1, 0, 512, False, True, RMS),
    "llama-65b": ("llama", 80, 8, 8, 0, 512, False, True, RMS),
    "llama-tied-small": ("llama", 3, 4, 2, 0, 256, False, False, RMS),
    "llama-odd-rows": ("llama", 9, 4, 4, 0, 640, False, True, RMS),
    "llama-very-odd-rows": ("llama", 9, 4, 4, 0, 328, False, True, RMS),
    "mixtral": ("llama", 32, 8, 2, 8, 256, False, True, MOE),
    "qwen2-72b": ("qwen2", 80, 8, 1, 0, 512, False, True, RMS),
    "qwen3moe": ("qwen3moe", 48, 8, 1, 16, 256, False, True, MOE),
    "falcon": ("falcon", 32, 8, 1, 0, 512, True, True, {"attention.layer_norm_epsilon": (1e-5, V.FLOAT32)}),
    "phi3": ("phi3", 32, 8, 8, 0, 512, True, True, RMS),
    "gemma3-270m": (
        "gemma3",
        18,
        4,
        1,
        0,
        640,
        False,
        False,
        {**RMS, "attention.sliding_window": (512, V.UINT32)},
    ),
}


def tensors(
    layers: int, heads: int, kv_heads: int, experts: int, columns: int, fused: bool, untied: bool
) -> list[Spec]:
    kv = columns * kv_heads // heads
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("token_embd.weight", (320, columns)),
        ("output_norm.weight", (columns,)),
    ]
    if untied:
        shapes.append(("output.weight", (320, columns)))
    for i in range(layers):
        b = f"blk.{i}."
        shapes += [(b + "attn_norm.weight", (columns,)), (b + "attn_output.weight", (columns, columns))]
        if fused:
            shapes.append((b + "attn_qkv.weight", (columns + 2 * kv, columns)))
        else:
            shapes += [(b + f"attn_{n}.weight", (columns if n == "q" else kv, columns)) for n in "qkv"]
        if experts:
            shapes += [(b + f"ffn_{n}_exps.weight", (experts, 256, columns)) for n in ("gate", "up")]
            shapes += [
                (b + "ffn_down_exps.weight", (experts, columns, 256)),
                (b + "ffn_gate_inp.weight", (experts, columns)),
            ]
        else:
            shapes += [(b + f"ffn_{n}.weight", (2 * columns, columns)) for n in ("gate", "up")]
            shapes.append((b + "ffn_down.weight", (columns, 2 * columns)))
    return [Spec(name, shape, lossless_type(name, shape, Type.BF16)) for name, shape in shapes]


def unused() -> np.ndarray:
    raise AssertionError("a dry run reads no data")


def write_header_only(path: Path, model: str) -> tuple[list[Spec], ModelShape]:
    architecture, layers, heads, kv_heads, experts, columns, fused, untied, extra = MODELS[model]
    specs = tensors(layers, heads, kv_heads, experts, columns, fused, untied)
    numbers = {
        "context_length": 512, "embedding_length": columns, "block_count": layers,
        "feed_forward_length": 2 * columns,
        "attention.head_count": heads, "attention.head_count_kv": kv_heads, "expert_count": experts,
        "vocab_size": 320,
    }  # fmt: skip
    kvs = {
        "general.architecture": (architecture, V.STRING),
        **{f"{architecture}.{k}": (v, V.UINT32) for k, v in numbers.items()},
    }
    kvs |= {f"{architecture}.{k}": v for k, v in extra.items()}
    planned = [Planned(s.name, s.shape, s.lossless, unused, unused) for s in specs]
    with open(path, "wb") as file:
        file.write(header(kvs, planned))
        file.truncate(file.tell() + sum(padded(p.size_bytes) for p in planned))  # sparse
    shape = ModelShape.from_kvs({key: value for key, (value, _) in kvs.items()}, architecture)
    return specs, shape


LINE = re.compile(r"\[ *\d+/ *\d+\] +(\S+) +- \[.*?\], type = +(\w+), .*?size = .*?(?:-> .*?\((\w+)\))?$")


def llamacpp_types(
    path: Path, file_type: str, importance: bool, overrides: tuple[tuple[str, Type], ...] = ()
) -> dict[str, str]:
    given = {"blk.0.attn_q.weight": np.ones(8, np.float32)} if importance else None
    quantize_file(
        path,
        path.with_suffix(".out"),
        FILE_TYPES[file_type].value,
        threads=1,
        importance=given,
        tensor_types=overrides,
        dry_run=True,
    )
    text = "\n".join(llamacpp.log_lines())
    # A warning about rows that do not fit comes between the two halves of a line.
    matches = [LINE.search(line) for line in text.splitlines() if re.match(r"\[ *\d+/", line)]
    return {m[1]: (m[3] or m[2]).lower() for m in matches if m}


def compare(path: Path, model: str, file_types: tuple[str, ...], importances: tuple[bool, ...]) -> int:
    specs, shape = write_header_only(path, model)
    compared = 0
    for name in file_types:
        for importance in importances:
            theirs = llamacpp_types(path, name, importance)
            chosen = choose_types(specs, FILE_TYPES[name], shape, has_imatrix=importance)
            ours = {n: c.kind.name.lower() for n, c in chosen.items()}
            assert ours == theirs, f"{model} {name} imatrix {importance}"
            assert list(ours) == list(theirs), "the order of writing"
            compared += len(ours)
    return compared


@pytest.mark.parametrize("model", MODELS)
def test_the_rules_match_llamacpp(tmp_path: Path, model: str) -> None:
    plain = (
        "q8_0",
        "q6_k",
        "q5_k_m",
        "q5_k_s",
        "q4_k_m",
        "q4_k_s",
        "q4_0",
        "iq4_xs",
        "q3_k_l",
        "q3_k_m",
        "q2_k",
        "f16",
    )
    assert compare(tmp_path / "model.gguf", model, plain, (False,)) >= 12 * 26
    compare(tmp_path / "model.gguf", model, ("q4_0", "iq4_nl", "iq3_xxs"), (True,))


@pytest.mark.long
def test_every_rule_matches_llamacpp(tmp_path: Path) -> None:
    quantized = tuple(name for name, file_type in FILE_TYPES.items() if file_type.quantized)
    compared = sum(compare(tmp_path / "model.gguf", model, quantized, (False, True)) for model in MODELS)
    assert compared > 100_000


@pytest.mark.parametrize("pattern", ["ffn_down", r"blk\.(1|2)\.attn_.*", "token_embd", "attn_norm", "output"])
def test_overrides_match_llamacpp(tmp_path: Path, pattern: str) -> None:
    path = tmp_path / "model.gguf"
    specs, shape = write_header_only(path, "llama-8b")
    given = ((pattern, Type.Q5_1), ("attn_k", Type.F16))
    theirs = llamacpp_types(path, "q4_k_m", False, given)
    ours = choose_types(specs, FILE_TYPES["q4_k_m"], shape, overrides=Overrides(tensor_types=given))
    assert {n: c.kind.name.lower() for n, c in ours.items()} == theirs
