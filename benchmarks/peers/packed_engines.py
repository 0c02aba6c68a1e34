"""GPTQ and AWQ of this program beside another engine's: time, peak memory, and KL divergence from the source.

    python -m benchmarks.peers.packed_engines MODEL WORKDIR [--recipes gptq-int4,awq-int4] [--peer gptqmodel]
        [--calibration TEXT --calibration-tokens 32768] [--repeats 1] [--threads 2]
        [--text HELD_OUT --tokens 202000]

Each conversion is a process of its own, without verification, the engines in turn: start, imports, reading,
calibration and writing are in its time, for both. A first conversion by GPTQModel of a few tokens is not
counted: it compiles kernels. With ``--text`` both artifacts of a recipe are evaluated in one run on the same
positions. A recipe is what both engines take: ``gptq-int3:group_size=64``. ``--peer``: gptqmodel, or one of
`quantwright env list`, which is installed where it is missing.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe_machine
from evals.statistics import block_bootstrap, ratio_of_sums
from quantize.engines.isolated.install import install
from quantize.engines.isolated.known import isolated_engine

PROGRAM = [sys.executable, "-m", "quantize.cli"]


def main() -> None:
    arguments = parse()
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    engines = ("native", arguments.peer)
    if arguments.repeats and arguments.peer == "gptqmodel":
        convert(arguments, "gptq-int4", "gptqmodel", tokens=2048, name="warm")
    elif arguments.peer != "gptqmodel":
        install(isolated_engine(arguments.peer))
    found: dict[str, Any] = {"machine": describe_machine(), "threads": arguments.threads, "recipes": {}}
    for recipe in arguments.recipes.split(","):
        runs: dict[str, list[dict[str, float]]] = {engine: [] for engine in engines}
        for repeat in range(arguments.repeats):
            for engine in engines if repeat % 2 == 0 else engines[::-1]:
                runs[engine].append(convert(arguments, recipe, engine))
                print(recipe, engine, runs[engine][-1], file=sys.stderr, flush=True)
        found["recipes"][recipe] = {"runs": runs}
        if arguments.text:
            found["recipes"][recipe]["divergence"] = divergence(arguments, recipe)
    print(json.dumps(found, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--recipes", default="gptq-int4,awq-int4")
    parser.add_argument("--peer", default="gptqmodel")
    parser.add_argument("--calibration", default="stdlib")
    parser.add_argument("--calibration-tokens", type=int, default=32768)
    parser.add_argument("--repeats", type=int, default=1, help="0: evaluate what a run before has left")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--text", type=Path, help="held-out text for the divergence")
    parser.add_argument("--tokens", type=int, default=202_000, help="of the text; half of them are scored")
    parser.add_argument(
        "--cache-limit", default="16GiB", help="disk for the source's logits, kept for every recipe"
    )
    return parser.parse_args()


def folder(arguments: argparse.Namespace, recipe: str, engine: str) -> Path:
    return Path(arguments.workdir) / f"{recipe.replace(':', '-').replace(',', '-')}-{engine}"


def convert(
    arguments: argparse.Namespace, recipe: str, engine: str, tokens: int = 0, name: str = ""
) -> dict[str, float]:
    """Seconds and peak bytes of one conversion."""
    out = arguments.workdir / name if name else folder(arguments, recipe, engine)
    shutil.rmtree(out, ignore_errors=True)
    joint = "," if ":" in recipe else ":"
    command = [
        *PROGRAM, "convert", str(arguments.model), "--to", f"{recipe}{joint}engine={engine}", "-o", str(out),
        "--verify", "none", "--calibration", arguments.calibration,
        "--calibration-tokens", str(tokens or arguments.calibration_tokens),
        "--threads", str(arguments.threads),
    ]  # fmt: skip
    environment = os.environ | {
        "OMP_NUM_THREADS": str(arguments.threads),
        "GPTQMODEL_CPU_WORKERS": str(max(2, arguments.threads)),  # fewer stop it
    }
    begun = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    said = process.stdout.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exit {process.returncode}\n{said[-2000:]}")
    return {
        "wall_s": round(time.monotonic() - begun, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_bytes": usage.ru_maxrss * 1024,
    }


def divergence(arguments: argparse.Namespace, recipe: str) -> dict[str, Any]:
    """Mean divergence of both artifacts, in nats, and their ratio with its 95 % interval over chunks."""
    engines = ("native", arguments.peer)
    folders = [str(folder(arguments, recipe, engine)) for engine in engines]
    command = [
        *PROGRAM, "eval", *folders, "--reference", str(arguments.model), "--text", str(arguments.text),
        "--metrics", "divergence", "--tokens", str(arguments.tokens), "--no-floors", "--json",
        "--threads", str(arguments.threads),
        "--cache", str(arguments.workdir / "cache"), "--cache-limit", arguments.cache_limit,
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    rows = json.loads(done.stdout.strip().splitlines()[-1])
    means = {row["artifact"]: row for row in rows if row["metric"] == "kl_mean"}
    pair = [means[path] for path in folders]
    chunks = np.array([row["samples"] for row in pair]).T
    return {
        "scored": pair[0]["n"],
        **{engine: row["value"] for engine, row in zip(engines, pair, strict=True)},
        "ratio": pair[0]["value"] / pair[1]["value"],
        "interval": block_bootstrap(chunks, ratio_of_sums),
    }


if __name__ == "__main__":
    main()
