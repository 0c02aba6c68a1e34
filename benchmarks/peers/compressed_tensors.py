"""compressed-tensors without calibration, beside copying the checkpoint, llm-compressor's own data-free path
and auto-round's rounding to nearest: seconds, the processor's seconds and the most memory of each process.

python -m benchmarks.peers.compressed_tensors WORKDIR [--weights 1.24e9] [--recipes ct-fp8-dynamic,ct-w4a16]
                                              [--threads 2] [--repeats 1] [--verify none,tensors]
                                              [--cold]

The checkpoint is one of Llama 3.2 1B's shape with random weights in bfloat16; fewer ``--weights`` are fewer
layers. The others run in environments of their own where ``quantwright env install`` made them; else a line
says so. Each process runs alone, all in turn, ``--repeats`` times; outputs are removed. The floor is one
SHA-256 of every byte that is read and of as many as are written, which manifests hold. Two copies: what `cp`
leaves may still be in memory only; `on the disk` says that it waits for the disk, as an artifact does. Each
conversion is made twice: of a source that is hashed then, and of one whose hashes are remembered.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from quantize.checkpoint.tensors import Entry, write_config, write_folder
from quantize.engines.isolated.environment import installed
from quantize.engines.isolated.known import isolated_engine

HIDDEN, INNER, LAYERS, HEADS, GROUPS, VOCABULARY = 2048, 8192, 16, 32, 8, 128256
TOKENIZER = Path(__file__).parents[2] / "demo" / "checkpoint"
#: llm-compressor's name of the scheme of a recipe
SCHEMES = {
    "ct-fp8-dynamic": "FP8_DYNAMIC", "ct-fp8-block": "FP8_BLOCK", "ct-int8": "W8A8", "ct-w4a16": "W4A16",
    "ct-nvfp4a16": "NVFP4A16", "ct-mxfp4": "MXFP4", "ct-mxfp4a16": "MXFP4A16",
}  # fmt: skip
THEIRS = """
import sys
from llmcompressor import model_free_ptq
source, target, scheme, workers = sys.argv[1:]
model_free_ptq(source, target, scheme=scheme, ignore=["lm_head", "re:.*embed_tokens.*"],
max_workers=int(workers), device="cpu")
"""
ROUNDS = """
import sys
import torch, transformers
from auto_round import AutoRound
source, target, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype="auto", trust_remote_code=False)
tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
AutoRound(model, tokenizer, scheme="W4A16", iters=0, disable_opt_rtn=True, device_map="cpu",
          enable_torch_compile=False).quantize_and_save(target, format="auto_round")
"""
HASHES = """
import hashlib, sys
digest, files = hashlib.sha256(), sys.argv[2:]
for path in files:
    with open(path, "rb") as file:
        hashlib.file_digest(file, "sha256")
left = int(sys.argv[1])
with open(files[0], "rb") as file:
    while left > 0 and (block := file.read(min(left, 1 << 18))):
        digest.update(block)
        left -= len(block)
"""


def make_checkpoint(folder: Path, weights: float) -> None:
    """Evenly spread numbers between -0.04 and 0.04: searches take as long as on any."""
    layer = 2 * HIDDEN * HIDDEN * (1 + GROUPS / HEADS) + 3 * HIDDEN * INNER
    layers = max(1, min(LAYERS, round((weights - VOCABULARY * HIDDEN) / layer)))
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for number in range(layers):
        name, keys = f"model.layers.{number}", HIDDEN * GROUPS // HEADS
        for part, shape in (
            ("self_attn.q_proj", (HIDDEN, HIDDEN)), ("self_attn.k_proj", (keys, HIDDEN)),
            ("self_attn.v_proj", (keys, HIDDEN)), ("self_attn.o_proj", (HIDDEN, HIDDEN)),
            ("mlp.gate_proj", (INNER, HIDDEN)), ("mlp.up_proj", (INNER, HIDDEN)),
            ("mlp.down_proj", (HIDDEN, INNER)), ("input_layernorm", (HIDDEN,)),
            ("post_attention_layernorm", (HIDDEN,)),
        ):  # fmt: skip
            shapes[f"{name}.{part}.weight"] = shape
    random = np.random.default_rng(0)

    def data(name: str) -> np.ndarray:
        values = (random.random(shapes[name], np.float32) - np.float32(0.5)) * np.float32(0.08)
        return (values.view(np.uint32) >> 16).astype(np.uint16)

    folder.mkdir(parents=True)
    write_folder(folder, [Entry(name, "BF16", shape) for name, shape in shapes.items()], data)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16",
        "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": layers,
        "num_attention_heads": HEADS, "num_key_value_heads": GROUPS, "head_dim": HIDDEN // HEADS,
        "vocab_size": VOCABULARY, "tie_word_embeddings": True, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
    }  # fmt: skip
    write_config(folder, config)
    for path in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / path, folder / path)


def forget(source: Path) -> None:
    """The system's cache loses the files: they are read from the disk next."""
    for path in source.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(title: str, command: list[str], target: Path) -> int:
    """One child, its figures on stdout; the bytes of its output."""
    begun = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert child.stderr is not None
    words = child.stderr.read().decode(errors="replace").strip().splitlines()
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter() - begun
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file()) if target.is_dir() else 0
    figures = {
        "what": title, "seconds": round(wall, 2), "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_memory_bytes": usage.ru_maxrss * 1024, "size_bytes": size,
    }  # fmt: skip
    if status:
        figures["failed"] = (words or ["no word"])[-1][:300]
    print(json.dumps(figures), flush=True)
    shutil.rmtree(target, ignore_errors=True)
    return size


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--weights", type=float, default=1.24e9)
    parser.add_argument("--recipes", default="ct-fp8-dynamic,ct-w4a16")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--verify", default="none,tensors", help="levels, one conversion each")
    parser.add_argument("--cold", action="store_true", help="the source comes from the disk in every run")
    options = parser.parse_args()
    peers = {name: installed(isolated_engine(name)) for name in ("llm-compressor", "auto-round")}
    for name, environment in peers.items():
        if environment is None:
            print(json.dumps({"what": name, "skipped": f"quantwright env install {name}"}), flush=True)
    source, target = options.workdir / "source", options.workdir / "target"
    if not source.is_dir():  # by a process of its own: a child's peak counts what its parent held at the fork
        maker = get_context("spawn").Process(target=make_checkpoint, args=(source, options.weights))
        maker.start()
        maker.join()
    for path in source.glob("*.safetensors"):  # into the system's cache, for all alike
        subprocess.run(["cat", str(path)], stdout=subprocess.DEVNULL, check=True)

    cache = options.workdir / "cache"
    os.environ["XDG_CACHE_HOME"] = str(cache.absolute())
    hashes = cache / "quantwright" / "hashes.json"

    def measure(title: str, command: list[str]) -> int:
        if options.cold:
            forget(source)
        return run(title, command, target)

    places = [str(source), str(target)]
    for _ in range(options.repeats):
        measure("copy", ["cp", "-r", *places])
        measure("copy, on the disk", ["sh", "-c", 'cp -r "$0" "$1" && sync "$1"/*', *places])
        for recipe in options.recipes.split(","):
            size = 0
            ours = [sys.executable, "-m", "quantize.cli", "convert", str(source), "--to", recipe]
            for verify in options.verify.split(","):
                rest = ["-o", str(target), "--threads", str(options.threads), "--verify", verify]
                hashes.unlink(missing_ok=True)
                for known in ("", ", source hashed before"):
                    size = measure(f"{recipe}, verify {verify}{known}", [*ours, *rest])
            files = map(str, source.glob("*.safetensors"))
            measure(f"{recipe}, floor", [sys.executable, "-I", "-c", HASHES, str(size), *files])
            if (peer := peers["llm-compressor"]) and recipe in SCHEMES:
                theirs = [*places, SCHEMES[recipe], str(options.threads)]
                measure(f"{recipe}, llm-compressor", [str(peer.python), "-I", "-c", THEIRS, *theirs])
            if (peer := peers["auto-round"]) and recipe == "ct-w4a16":
                theirs = [*places, str(options.threads)]
                measure(f"{recipe}, auto-round", [str(peer.python), "-I", "-c", ROUNDS, *theirs])


if __name__ == "__main__":
    main()
