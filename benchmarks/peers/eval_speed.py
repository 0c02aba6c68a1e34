"""Time and memory of perplexity, divergence and a task beside the tools that measure the same, on one model,
in one run.

    python -m benchmarks.peers.eval_speed WORKDIR [--model HF_FOLDER] [--llama-perplexity PATH]
        [--chunks 8] [--repeats 3]
        [--hellaswag hellaswag_val_full.txt --items 50]

Without ``--model``, random weights in the shape of Qwen2 0.5B. Whole commands, each in a process of its own,
ours and theirs in turn:

- a GGUF (Q4_K_M) in llama.cpp: ``llama-perplexity -c 512`` against ``eval --ids runtime`` on the same text;
- the same file on the first items of HellaSwag's text form: ``llama-perplexity --hellaswag`` against ``eval
  --tasks``;
- the checkpoint in float32: lm-eval's wikitext task on its own HFLM against ``eval --protocol
  lmeval-wikitext``;
- divergence of two GGUFs in one command against the time of their perplexities alone, in units of the
  reference's.

Prints one JSON document: seconds, peak memory, ratio of the medians, and what each said the result is.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine

QWEN2_05B = {
    "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936, "max_position_embeddings": 4096, "tie_word_embeddings": True, "bos_token_id": 0,
    "eos_token_id": 0,
}  # fmt: skip
WINDOW = 512


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--llama-perplexity", type=Path)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--parts", default="gguf,hf,divergence")
    parser.add_argument("--hellaswag", type=Path)
    parser.add_argument("--items", type=int, default=50)
    parser.add_argument("--hflm", nargs=2, type=Path, metavar=("FOLDER", "PAGES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.hflm:
        print(json.dumps(lm_eval_perplexity(*options.hflm)))
        return
    options.workdir.mkdir(parents=True, exist_ok=True)
    model = options.model or make_model(options.workdir / "qwen2-0.5b-shape")
    text = write_text(options.workdir / "text.txt", model, options.chunks * WINDOW)
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "threads": options.threads,
        "chunks": options.chunks,
    }
    parts = options.parts.split(",")
    if "gguf" in parts:
        result["gguf"] = gguf(model, text, options)
    if options.hellaswag:
        result["hellaswag"] = hellaswag(model, options)
    if "hf" in parts:
        result["hf"] = hf(model, options)
    if "divergence" in parts:
        result["divergence"] = divergence(model, text, options)
    print(json.dumps(result, indent=1))


def ours(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "quantize.cli", *map(str, arguments)]


def run(command: list[str], threads: int) -> tuple[float, int, str]:
    """Seconds, peak bytes, and all that it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    assert process.stdout is not None
    printed = process.stdout.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{printed[-2000:]}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024, printed


def in_turn(commands: dict[str, list[str]], options: argparse.Namespace) -> dict[str, Any]:
    runs: dict[str, list[tuple[float, int, str]]] = {who: [] for who in commands}
    for repeat in range(options.repeats):
        for who in list(commands) if repeat % 2 else list(commands)[::-1]:
            runs[who].append(run(commands[who], options.threads))
            print(f"{who}: {runs[who][-1][0]:.1f} s, {runs[who][-1][1] / 1e6:.0f} MB", file=sys.stderr)
    seconds = {who: [each[0] for each in made] for who, made in runs.items()}
    return {
        "seconds": seconds,
        "median_seconds": {who: statistics.median(each) for who, each in seconds.items()},
        "peak_bytes": {who: max(each[1] for each in made) for who, made in runs.items()},
        "said": {who: said(made[-1][2]) for who, made in runs.items()},
    }


def ratio(result: dict[str, Any]) -> dict[str, Any]:
    median = result["median_seconds"]
    return {**result, "ratio": median["ours"] / median["theirs"]}


def said(printed: str) -> float | None:
    """Perplexity, or HellaSwag's accuracy in per cent: of our rows, of llama-perplexity's last line, or of
    lm-eval's result."""
    last = printed.strip().splitlines()[-1]
    if last.startswith("["):
        rows = json.loads(last)
        found = {row["metric"]: row["value"] for row in rows}
        if "accuracy_per_token" in found:
            return 100 * found["accuracy_per_token"]
        return found.get("word_perplexity", found.get("perplexity"))
    if items := re.findall(r"^\d+\t([\d.]+)%", printed, re.MULTILINE):
        return float(items[-1])
    if total := re.search(r"Final estimate: PPL = ([\d.]+)", printed) or re.search(
        r"\]([\d.]+),\s*$", printed
    ):
        return float(total[1])
    return float(json.loads(last)["word_perplexity"])


def gguf(model: Path, text: Path, options: argparse.Namespace) -> dict[str, Any]:
    file = converted(model, "gguf-q4_k_m", options.workdir)
    threads = ("--threads", options.threads)
    commands = {
        "ours": ours(
            "eval", file, "--ids", "runtime", "--text", text, "--metrics", "perplexity", "--json", *threads
        )
    }
    if not options.llama_perplexity:
        return in_turn(commands, options)
    tool = [options.llama_perplexity, "-m", file, "-f", text, "-c", WINDOW, "-t", options.threads]
    return ratio(in_turn({**commands, "theirs": list(map(str, tool))}, options))


def hellaswag(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    file, text = converted(model, "gguf-q4_k_m", options.workdir), options.workdir / "hellaswag.txt"
    lines = options.hellaswag.read_text(encoding="utf-8").splitlines(keepends=True)[: 6 * options.items]
    text.write_text("".join(lines), encoding="utf-8")
    commands = {
        "ours": ours(
            "eval", file, "--ids", "runtime", "--tasks", text, "--json", "--threads", options.threads
        )
    }
    if not options.llama_perplexity:
        return in_turn(commands, options)
    tool = [
        options.llama_perplexity,
        "-m",
        file,
        "-f",
        text,
        "-t",
        options.threads,
        "--hellaswag",
        "--hellaswag-tasks",
        options.items,
    ]
    return ratio(in_turn({**commands, "theirs": list(map(str, tool))}, options))


def hf(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    pages = options.workdir / "pages.txt"
    body = (options.workdir / "text.txt").read_text(encoding="utf-8")
    pages.write_text(f" = Page = \n {' '.join(body.split())} \n", encoding="utf-8")
    # lm-eval loads and scores in the dtype that it is given; eval's --dtype is the same choice.
    dtype = ("--dtype", "float32", "--threads", options.threads)
    mine = ours(
        "eval",
        model,
        "--protocol",
        "lmeval-wikitext",
        "--text",
        pages,
        "--metrics",
        "perplexity",
        "--json",
        *dtype,
    )
    theirs = [
        sys.executable,
        "-m",
        "benchmarks.peers.eval_speed",
        str(options.workdir),
        "--hflm",
        str(model),
        str(pages),
    ]
    return ratio(in_turn({"ours": mine, "theirs": theirs}, options))


def divergence(model: Path, text: Path, options: argparse.Namespace) -> dict[str, Any]:
    files = [converted(model, recipe, options.workdir) for recipe in ("gguf-q4_k_m", "gguf-q8_0")]
    common = ("--text", text, "--json", "--threads", options.threads)
    commands = {
        **{f.stem: ours("eval", f, "--reference", model, "--metrics", "perplexity", *common) for f in files},
        "reference": ours("eval", model, "--metrics", "perplexity", *common),
        "together": ours("eval", *files, "--reference", model, "--metrics", "perplexity,divergence", *common),
    }
    result = in_turn(commands, options)
    median = result["median_seconds"]
    extra = median["together"] - sum(median[f.stem] for f in files)
    return {**result, "beyond_the_sum_in_reference_times": extra / median["reference"]}


def converted(model: Path, recipe: str, workdir: Path) -> Path:
    folder = workdir / recipe
    if not folder.is_dir():
        run(
            ours("convert", model, "--to", recipe, "-o", folder, "--verify", "none"),
            len(os.sched_getaffinity(0)),
        )
    (file,) = folder.glob("*.gguf")
    return file


def make_model(folder: Path) -> Path:
    import shutil

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**QWEN2_05B)).to(torch.bfloat16).save_pretrained(folder)  # type: ignore[arg-type]
        demo = Path(__file__).resolve().parents[2] / "demo" / "checkpoint"
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(demo / name, folder / name)
    return folder


def write_text(path: Path, model: Path, tokens: int) -> Path:
    """As much of the built-in calibration text as gives ``tokens`` tokens and a few more."""
    from quantize.calibration.texts import stdlib_documentation
    from quantize.checkpoint.tokenizer import SourceTokenizer

    tokenizer, text = SourceTokenizer.open(model), stdlib_documentation()
    ids = tokenizer.encode(text[: 12 * tokens])[: tokens + 8]
    path.write_text(tokenizer.decode(ids), encoding="utf-8")
    return path


def lm_eval_perplexity(folder: Path, pages: Path) -> dict[str, float]:
    from benchmarks.peers.protocols import lm_eval_wikitext
    from evals.wikitext import wikitext_pages
    from quantize.documents import read_document

    return lm_eval_wikitext(folder, wikitext_pages(read_document(pages).text))


if __name__ == "__main__":
    main()
