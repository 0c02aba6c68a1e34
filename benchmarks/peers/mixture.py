"""Converting a mixture of eight experts to GGUF against a dense model of equal weights.

    python -m benchmarks.peers.mixture WORKDIR [--types q4_k_m,f16] [--layers 14] [--repeats 3]

14 layers hold 1.0 billion weights; the experts lie in a tensor each, or in one three-dimensional tensor a
layer and kind; the dense model has one MLP of their width together. Each run is a process of its own with
one thread; the three alternate. Printed as JSON: the median of wall and processor's seconds, the most memory.
"""

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe_machine
from benchmarks.peers.gguf_two_step import Run, ours, run
from quantize.checkpoint.tensors import Entry, write_folder

HIDDEN, WIDTH, EXPERTS, VOCABULARY = 1024, 2816, 8, 4096
SHAPES = ("dense", "experts one by one", "experts in one tensor")
CONFIG = {
    "hidden_size": HIDDEN, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64,
    "vocab_size": VOCABULARY, "max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "rope_theta": 1e6,
    "hidden_act": "silu", "tie_word_embeddings": False, "dtype": "bfloat16", "bos_token_id": 0,
    "eos_token_id": 0,
}  # fmt: skip
DENSE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "intermediate_size": WIDTH * EXPERTS,
}  # fmt: skip
MIXTURE = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "intermediate_size": WIDTH,
    "num_local_experts": EXPERTS, "num_experts_per_tok": 2,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("workdir", type=Path, help="scratch folder; needs about 8 GB for 14 layers")
    parser.add_argument("--types", default="q4_k_m,f16")
    parser.add_argument("--layers", type=int, default=14)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    folders = {shape: arguments.workdir / shape.replace(" ", "-") for shape in SHAPES}
    weights = {shape: write(folder, shape, arguments.layers) for shape, folder in folders.items()}
    result: dict[str, Any] = {"machine": describe_machine(), "weights": weights, "types": {}}
    for name in arguments.types.split(","):
        runs: dict[str, list[Run]] = {shape: [] for shape in SHAPES}
        for _ in range(arguments.repeats):
            for shape, folder in folders.items():
                out = arguments.workdir / "out"
                runs[shape].append(run(ours(folder, f"gguf-{name}", out, 1), out))
                last = runs[shape][-1]
                print(f"{name} {shape}: {last.seconds:.1f} s, {last.cpu_seconds:.1f} s CPU", file=sys.stderr)
        result["types"][name] = {shape: summary(each, weights[shape]) for shape, each in runs.items()}
    print(json.dumps(result, indent=1))


def summary(runs: list[Run], weights: int) -> dict[str, float]:
    cpu = statistics.median(each.cpu_seconds for each in runs)
    return {
        "seconds": statistics.median(each.seconds for each in runs),
        "cpu_seconds": cpu,
        "weights_per_cpu_second": weights / cpu,
        "peak_bytes": max(each.peak_bytes for each in runs),
    }


def write(folder: Path, shape: str, layers: int) -> int:
    """The checkpoint, in bfloat16; -> its number of weights."""
    entries = [Entry(name, "BF16", size) for name, size in tensors(shape, layers)]
    if not (folder / "config.json").is_file():
        folder.mkdir(parents=True)
        pool = np.random.default_rng(0).normal(0, 0.02, 1 << 22).astype(np.float32)
        bits = (pool.view(np.uint32) >> 16).astype(np.uint16)
        sizes = {entry.name: entry.shape for entry in entries}
        write_folder(folder, entries, lambda name: np.resize(bits, sizes[name]))
        config = {**CONFIG, **(DENSE if shape == "dense" else MIXTURE), "num_hidden_layers": layers}
        (folder / "config.json").write_text(json.dumps(config))
        demo = Path(__file__).resolve().parents[2] / "demo" / "checkpoint"
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(demo / name, folder / name)
    return sum(int(np.prod(entry.shape)) for entry in entries)


def tensors(shape: str, layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for index in range(layers):
        layer = f"model.layers.{index}"
        for name, rows in (("q", HIDDEN), ("k", 256), ("v", 256), ("o", HIDDEN)):
            yield f"{layer}.self_attn.{name}_proj.weight", (rows, HIDDEN)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{layer}.{name}.weight", (HIDDEN,)
        if shape == "dense":
            for name in ("gate", "up"):
                yield f"{layer}.mlp.{name}_proj.weight", (WIDTH * EXPERTS, HIDDEN)
            yield f"{layer}.mlp.down_proj.weight", (HIDDEN, WIDTH * EXPERTS)
        elif shape == "experts in one tensor":
            yield f"{layer}.mlp.gate.weight", (EXPERTS, HIDDEN)
            yield f"{layer}.mlp.experts.gate_up_proj", (EXPERTS, 2 * WIDTH, HIDDEN)
            yield f"{layer}.mlp.experts.down_proj", (EXPERTS, HIDDEN, WIDTH)
        else:
            yield f"{layer}.block_sparse_moe.gate.weight", (EXPERTS, HIDDEN)
            for expert in range(EXPERTS):
                inside = f"{layer}.block_sparse_moe.experts.{expert}"
                yield f"{inside}.w1.weight", (WIDTH, HIDDEN)
                yield f"{inside}.w2.weight", (HIDDEN, WIDTH)
                yield f"{inside}.w3.weight", (WIDTH, HIDDEN)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


if __name__ == "__main__":
    main()
