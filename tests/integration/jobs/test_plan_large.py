"""A plan reads headers, configs and tokenizers only: 70 billion weights, of which none exists, take it no
time."""

import json
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LAYERS, HIDDEN, INNER, GROUPS = 80, 8192, 28672, 1024
RECIPES = "gguf-q4_k_m,gptq-int4,awq-int4,quanto-int8,bnb-nf4"


def llama_70b(folder: Path, tokenizer: Path, vocabulary: int, layers: int = LAYERS) -> int:
    """Headers and a hole in place of the weights: 141 GB that take some 100 kB of disk. Returns the number of
    weights."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers, "num_attention_heads": 64, "num_key_value_heads": 8,
        "vocab_size": vocabulary,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 0, "eos_token_id": 0, "dtype": "bfloat16",
    }  # fmt: skip
    layer = {
        "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,), "self_attn.q_proj": (HIDDEN,
        HIDDEN),
        "self_attn.k_proj": (GROUPS, HIDDEN), "self_attn.v_proj": (GROUPS, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN), "mlp.down_proj": (HIDDEN, INNER),
    }  # fmt: skip
    outer = {
        "model.embed_tokens.weight": (vocabulary, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (vocabulary, HIDDEN),
    }
    shards = [outer] + [
        {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()} for i in range(layers)
    ]
    folder.mkdir()
    weight_map, total = {}, 0
    for number, shard in enumerate(shards):
        header: dict[str, Any] = {}
        end = 0
        for name, shape in shard.items():
            size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
            end += size
        packed = json.dumps(header).encode()
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        with open(folder / file, "wb") as out:
            out.write(struct.pack("<Q", len(packed)) + packed)
            out.truncate(8 + len(packed) + end)
        weight_map |= dict.fromkeys(shard, file)
        total += end // 2
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    (folder / "config.json").write_text(json.dumps(config))
    for path in tokenizer.glob("tokenizer*.json"):
        shutil.copy(path, folder)
    return total


def plan(folder: Path, *more: str) -> tuple[Any, float]:
    """The plan's document, and seconds of processor time that the whole command took."""
    command = [sys.executable, "-m", "quantize.cli", "plan", str(folder), "--to", RECIPES, "--json", *more]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout, done.stderr
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(done.stdout.splitlines()[-1]), seconds


pytestmark = pytest.mark.usefixtures("own_rates")


def check_plan(document: Any, weights: int) -> None:
    bits = {
        name: 8 * step["size_bytes"] / weights
        for step in document["steps"]
        for name in [step["id"].split(":")[-1]]
    }
    assert bits == {
        "gguf-q4_k_m": pytest.approx(4.82, abs=0.05),
        "gptq-int4": pytest.approx(4.3, abs=0.3),
        "awq-int4": pytest.approx(4.3, abs=0.3),
        "quanto-int8": pytest.approx(8.1, abs=0.2),
        "bnb-nf4": pytest.approx(4.8, abs=0.3),
    }
    assert document["rows"] == []
    outputs = sum(step["size_bytes"] for step in document["steps"])
    assert document["disk_bytes"] == outputs + 4 * weights  # verification spills the weights as float32


def check_seconds(seconds: float, small: Path) -> None:
    """Beside the plan of one layer with the same tokenizer, which opening takes most of either: 5.4 s and
    4.5 s on one machine. Anything by weight takes minutes."""
    assert seconds < 4 * plan(small)[1]


def test_seventy_billion_weights(tmp_path: Path, demo_checkpoint: Path) -> None:
    weights = llama_70b(tmp_path / "large", demo_checkpoint, 4096)
    document, seconds = plan(tmp_path / "large")
    check_plan(document, weights)
    llama_70b(tmp_path / "small", demo_checkpoint, 4096, layers=1)
    check_seconds(seconds, tmp_path / "small")


def test_seventy_billion_weights_with_a_real_tokenizer(tmp_path: Path, shared: Path) -> None:
    weights = llama_70b(tmp_path / "large", shared / "tokenizers" / "llama3", 128_256)
    document, seconds = plan(tmp_path / "large")
    check_plan(document, weights)
    assert weights == 70_553_706_496
    llama_70b(tmp_path / "small", shared / "tokenizers" / "llama3", 128_256, layers=1)
    check_seconds(seconds, tmp_path / "small")
