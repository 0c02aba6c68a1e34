"""``quantwright methods`` and ``quantwright doctor``: what can run here, and if not, the command that makes
it so."""

import click

from quantize.formats.gptq_in_vllm import refused_by_vllm
from quantize.kernels import llamacpp, native
from quantize.methods.registry import METHODS, method, parse_recipe
from quantize.packages import install_command, version
from quantize.terminal import console, emit_json, say
from quantize.units import spell_size


@click.command()
@click.option("--json", "as_json", is_flag=True, help="last line of stdout is one JSON document")
def methods(as_json: bool) -> None:
    """List every recipe, what it needs, and whether it can run here."""
    from rich.table import Table

    table = Table("recipe", "needs", "here", "loads in", box=None, pad_edge=False)
    document = []
    for name in METHODS:
        found = method(name)
        engine, storage = found.engine, getattr(found.format, "storage", "")
        missing = list(engine.probe().missing)
        needs = ", ".join(distribution for distribution, _ in engine.needs) or "nothing more"
        install = install_command(engine.extra, missing) if missing else None
        state = f"no: {install}" if install else "yes"
        for short in found.recipe_class.presets:
            recipe = parse_recipe(short)
            calibrated = " + calibration text" if recipe.calibrated else ""
            refused = refused_by_vllm({"quant_method": storage, **recipe.canonical})
            loads_in = [each for each in found.format.loads_in if each != "vllm" or not refused]
            table.add_row(short, needs + calibrated, state, ", ".join(loads_in))
            document.append(
                {
                    "recipe": short,
                    "method": name,
                    "summary": found.summary,
                    "needs": [distribution for distribution, _ in engine.needs],
                    "missing": missing,
                    "available": not missing,
                    "install": install,
                    "calibrated": recipe.calibrated,
                    "parameters": recipe.canonical,
                    "loads_in": loads_in,
                }
            )
    console().print(table)
    if as_json:
        emit_json(document)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="last line of stdout is one JSON document")
def doctor(as_json: bool) -> int:
    """Check this installation: packages, compiler, llama.cpp, GPU, disk, the Hub's cache."""
    import platform
    import shutil

    checks: list[tuple[str, bool, str]] = []

    def add(name: str, good: bool, detail: str) -> None:
        checks.append((name, good, detail))

    add("python", True, platform.python_version())
    for distribution, extra in PACKAGES.items():
        add(distribution, *_package(distribution, extra))
    compiler = shutil.which("g++") or shutil.which("c++")
    add(
        "C++ compiler",
        compiler is not None,
        compiler or "missing: quanto's and gptqmodel's CPU kernels are built on first use",
    )
    ninja = shutil.which("ninja")
    add("ninja", ninja is not None, ninja or f"missing: {install_command('', ['ninja'])}")
    add("llama.cpp", *_llamacpp())
    add("compiled kernels", True, native.describe())
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none (CPU only)"
    add("GPU", True, gpu)
    free = shutil.disk_usage(".").free
    add("free disk here", free > 5e9, spell_size(free))
    from huggingface_hub import constants

    add(
        "Hub",
        True,
        f"{constants.ENDPOINT}, cache {constants.HF_HUB_CACHE}"
        + (", offline" if constants.HF_HUB_OFFLINE else ""),
    )
    for name, good, detail in checks:
        say(f"{'ok ' if good else 'BAD'}  {name:20} {detail}")
    if as_json:
        emit_json([{"name": name, "ok": good, "detail": detail} for name, good, detail in checks])
    return 0 if all(good for _, good, _ in checks) else 1


PACKAGES = {
    "torch": "",
    "transformers": "",
    "gguf": "",
    "llama-cpp-python": "llamacpp",
    "gptqmodel": "gptq",
    "optimum": "gptq",
    "optimum-quanto": "quanto",
    "bitsandbytes": "bnb",
    "torchao": "torchao",
    "compressed-tensors": "compressed-tensors",
    "lm-eval": "tasks",
    "datasets": "tasks",
    "peft": "adapters",
    "matplotlib": "plots",
}


def _package(distribution: str, extra: str) -> tuple[bool, str]:
    found = version(distribution)
    return found is not None, found or f"missing: {install_command(extra, [distribution])}"


def _llamacpp() -> tuple[bool, str]:
    try:
        known = llamacpp.describe()
    except ImportError as error:
        return False, str(error)
    return True, ", ".join(f"{key} {value}" for key, value in known.items())
