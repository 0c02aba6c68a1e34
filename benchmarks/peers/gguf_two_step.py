"""This program's one pass against llama.cpp's two steps, on a synthetic checkpoint in the shape of Llama 3.2
1B.

    python -m benchmarks.peers.gguf_two_step WORKDIR [--types q4_k_m,q5_k_m] [--repeats 5] [--threads 2]
        [--llama-quantize PATH] [--converter PATH/convert_hf_to_gguf.py]

Each run is a process of its own; ours and theirs alternate. Theirs is ``llama-quantize`` where its path is
given, otherwise the same function of the installed library, on the lossless (bf16) file that is made first;
its tensors are compared with ours. With the converter, ``two_steps`` holds both of theirs together. Beside
seconds of the clock stand those of the processor, which a busy machine changes little.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe_machine
from quantize.process import peak_rss_bytes

LLAMA_3_2_1B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
    "vocab_size": 128256,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "hidden_act": "silu",
    "tie_word_embeddings": True, "dtype": "bfloat16", "bos_token_id": 0, "eos_token_id": 0,
    "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
SHARD_BYTES = 500_000_000
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Run:
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def main() -> None:
    arguments = parse()
    work: Path = arguments.workdir
    checkpoint = work / f"checkpoint-{arguments.layers}"
    if not (checkpoint / "config.json").is_file():
        print(f"writing {checkpoint}", file=sys.stderr)
        write_checkpoint(checkpoint, arguments.layers, arguments.tokenizer)
    lossless = work / f"lossless-{arguments.layers}"
    if not lossless.is_dir():
        run(ours(checkpoint, "gguf-bf16", lossless, arguments.threads), None)
    (source,) = lossless.glob("*.gguf")
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "source_bytes": sum(p.stat().st_size for p in checkpoint.glob("*.safetensors")),
        "theirs": str(arguments.llama_quantize or "llama_model_quantize of the installed library"),
        "types": {name: compare(name, checkpoint, source, arguments) for name in arguments.types.split(",")},
    }
    if arguments.converter:
        result["converter"] = converted = converter(checkpoint, arguments)
        result["two_steps"] = {
            name: two_steps(types, converted["bf16"]) for name, types in result["types"].items()
        }
    print(json.dumps(result, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("workdir", type=Path, help="scratch folder; needs about 8 GB for 16 layers")
    parser.add_argument("--types", default="q4_k_m,q5_k_m")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--layers", type=int, default=16)
    root = Path(__file__).resolve().parents[2]
    parser.add_argument(
        "--tokenizer", type=Path, default=root / "demo" / "checkpoint", help="folder with tokenizer.json"
    )
    parser.add_argument("--llama-quantize", type=Path)
    parser.add_argument("--converter", type=Path, help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("--converter-types", default="bf16,f16,q8_0", help="bf16 is the first of two steps")
    return parser.parse_args()


def compare(name: str, checkpoint: Path, lossless: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    mine, theirs = arguments.workdir / f"ours-{name}", arguments.workdir / f"theirs-{name}.gguf"
    runs: dict[str, list[Run]] = {"ours": [], "theirs": []}
    for repeat in range(arguments.repeats):
        order = ["ours", "theirs"] if repeat % 2 == 0 else ["theirs", "ours"]
        for who in order:
            if who == "ours":
                runs[who].append(run(ours(checkpoint, f"gguf-{name}", mine, arguments.threads), mine))
            else:
                runs[who].append(run(quantizer(lossless, theirs, name, arguments), theirs))
            print(
                f"{name} {who}: {runs[who][-1].seconds:.1f} s, {runs[who][-1].peak_bytes / 1e6:.0f} MB",
                file=sys.stderr,
            )
    (made,) = mine.glob("*.gguf")
    return {
        **medians(runs),
        "peak_bytes": {who: max(r.peak_bytes for r in each) for who, each in runs.items()},
        "identical_tensors": identical(made, theirs),
        "bytes_read": {"ours": size(checkpoint.glob("*.safetensors")), "theirs": size([lossless])},
        "bytes_written": {"ours": size([made]), "theirs": size([theirs])},
        "quantizer_share": quantizer_share(checkpoint, name, arguments),
    }


def two_steps(quantized: dict[str, Any], converted: dict[str, Any]) -> dict[str, float]:
    """Ours against their converter and quantizer one after the other, by the clock and the processor."""
    return {
        kind: quantized[kind]["ours"] / (quantized[kind]["theirs"] + converted[kind]["theirs"])
        for kind in ("median_seconds", "median_cpu_seconds")
    }


def medians(runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Of every run, and of the middle one, by who ran."""
    seconds = {who: [r.seconds for r in each] for who, each in runs.items()}
    cpu = {who: [r.cpu_seconds for r in each] for who, each in runs.items()}
    median = {who: statistics.median(each) for who, each in seconds.items()}
    median_cpu = {who: statistics.median(each) for who, each in cpu.items()}
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "median_seconds": median,
        "median_cpu_seconds": median_cpu,
        "ratio": median["ours"] / median["theirs"],
        "cpu_ratio": median_cpu["ours"] / median_cpu["theirs"],
    }


def size(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def ours(checkpoint: Path, recipe: str, out: Path, threads: int) -> list[str]:
    options = ["--to", recipe, "-o", str(out), "--verify", "none", "--force", "--threads", str(threads)]
    return [sys.executable, "-m", "quantize.cli", "convert", str(checkpoint), *options]


def quantizer(source: Path, target: Path, name: str, arguments: argparse.Namespace) -> list[str]:
    if arguments.llama_quantize:
        return [str(arguments.llama_quantize), str(source), str(target), name.upper(), str(arguments.threads)]
    program = "benchmarks.peers.llama_quantize"
    return [sys.executable, "-m", program, str(source), str(target), name, str(arguments.threads)]


def converter(checkpoint: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """llama.cpp's converter against ours."""
    result: dict[str, Any] = {}
    for name in arguments.converter_types.split(","):
        runs: dict[str, list[Run]] = {"ours": [], "theirs": []}
        out, mine = arguments.workdir / f"converter-{name}.gguf", arguments.workdir / f"ours-{name}"
        options = ["--outfile", str(out), "--outtype", name]
        command = [sys.executable, str(arguments.converter), str(checkpoint), *options]
        for _ in range(arguments.repeats):
            runs["theirs"].append(run(command, out))
            runs["ours"].append(run(ours(checkpoint, f"gguf-{name}", mine, arguments.threads), mine))
        result[name] = medians(runs)
    return result


def run(command: list[str], output: Path | None) -> Run:
    """Run to the end, alone; ``output`` of an earlier run is removed first, outside the time."""
    if output is not None and output.is_dir():
        shutil.rmtree(output)
    elif output is not None:
        output.unlink(missing_ok=True)
    os.sync()
    start = time.perf_counter()
    peak, ended = 0, 0
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        while not ended:
            # of the process itself: its ru_maxrss is not less than what the one that started it held
            peak = max(peak, peak_rss_bytes(process.pid))
            time.sleep(POLL_SECONDS)
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        said = errors.read().decode(errors="replace")[-2000:]
    if status != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{said}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, peak)


def identical(mine: Path, theirs: Path) -> bool:
    from quantize.gguf.container.reader import read_gguf

    a, b = read_gguf(mine), read_gguf(theirs)
    return a.tensors.keys() == b.tensors.keys() and all(
        a.tensors[n].kind is b.tensors[n].kind and np.array_equal(a.raw(n), b.raw(n)) for n in a.tensors
    )


def quantizer_share(checkpoint: Path, name: str, arguments: argparse.Namespace) -> float:
    """Share of the threads' time in one more pass that is spent inside llama.cpp's block quantizers."""
    from quantize.engines import ggml
    from quantize.gguf.container import writer
    from quantize.methods.gguf import Gguf
    from quantize.methods.gguf_recipe import GgufRecipe
    from quantize.recipe import RunOptions
    from quantize.sources.opening import open_checkpoint

    written: list[writer.Written] = []
    plain: Callable[..., list[writer.Written | Exception]] = ggml.write_together

    def observed(*given: object, **named: object) -> list[writer.Written | Exception]:
        results = plain(*given, **named)
        written.extend(result for result in results if isinstance(result, writer.Written))
        return results

    with tempfile.TemporaryDirectory(dir=arguments.workdir) as stage:
        ggml.write_together = observed  # type: ignore[assignment]
        try:
            start = time.perf_counter()
            work = Gguf().plan(open_checkpoint(checkpoint), GgufRecipe(type=name))
            work.write(Path(stage), RunOptions(threads=arguments.threads), None)
            seconds = time.perf_counter() - start
        finally:
            ggml.write_together = plain  # type: ignore[assignment]
    return written[0].quantizer_seconds / (seconds * arguments.threads)


def write_checkpoint(folder: Path, layers: int, tokenizer: Path) -> None:
    """Random normal weights in bf16, in shards, with a small tokenizer (the other ids are padding)."""
    import torch
    from safetensors.torch import save_file

    config = {**LLAMA_3_2_1B, "num_hidden_layers": layers}
    hidden, ffn, vocabulary = 2048, 8192, 128256
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for i in range(layers):
        block = f"model.layers.{i}."
        for name, rows in (("q_proj", hidden), ("k_proj", 512), ("v_proj", 512), ("o_proj", hidden)):
            shapes[f"{block}self_attn.{name}.weight"] = (rows, hidden)
        shapes[f"{block}mlp.gate_proj.weight"] = shapes[f"{block}mlp.up_proj.weight"] = (ffn, hidden)
        shapes[f"{block}mlp.down_proj.weight"] = (hidden, ffn)
        shapes[f"{block}input_layernorm.weight"] = shapes[f"{block}post_attention_layernorm.weight"] = (
            hidden,
        )
    shapes["model.norm.weight"] = (hidden,)
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True)
    pool = torch.randn(1 << 25, generator=torch.Generator().manual_seed(0)) * 0.02
    shards: list[dict[str, torch.Tensor]] = [{}]
    filled = 0
    for index, (name, shape) in enumerate(shapes.items()):
        count = int(np.prod(shape))
        start = index * 7_654_321 % pool.numel()
        values = (
            torch.cat([pool[start:], pool[:start]]).repeat(count // pool.numel() + 1)[:count].reshape(shape)
        )
        tensor = (values * (1 + index % 5 / 4) + (1 if len(shape) == 1 else 0)).to(torch.bfloat16)
        if filled + 2 * count > SHARD_BYTES and shards[-1]:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += 2 * count
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, partial / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index_document = {
        "metadata": {"total_size": sum(2 * int(np.prod(s)) for s in shapes.values())},
        "weight_map": weight_map,
    }
    (partial / "model.safetensors.index.json").write_text(json.dumps(index_document))
    (partial / "config.json").write_text(json.dumps(config, indent=1))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (tokenizer / name).is_file():
            shutil.copy(tokenizer / name, partial / name)
    partial.rename(folder)


if __name__ == "__main__":
    main()
