"""vLLM and SGLang: a command and a compose file with the flags that a format needs.

Sources of the flags: `vllm serve --help`, vLLM's docs/features/quantization, SGLang's docs on server
arguments. Neither program is started here.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

from quantize.checkpoint.templates import folder_templates
from quantize.errors import Unsupported
from quantize.formats.gptq_in_vllm import refused_by_vllm
from quantize.terminal import printable, shell
from serving.target import Exported, Request, gguf_context, whole

_INSIDE, _TOKENIZER = "/artifact", "/tokenizer"  # where a container sees the artifact, and the source
SOURCE = "".join(("$", "TOKENIZER"))  # the source's folder, which the person names; known by identity


@dataclass(frozen=True)
class Program:
    """``model``, ``length``, ``tokenizer``: its names of these flags."""

    name: str
    runtime: str  # as manifests call it
    start: tuple[str, ...]
    image: str
    entry: tuple[str, ...]  # of the container, before the flags
    model: tuple[str, ...]
    length: str
    tokenizer: str


VLLM = Program(
    "vLLM",
    "vllm",
    ("vllm", "serve"),
    "vllm/vllm-openai:latest",
    (),
    ("--model",),
    "--max-model-len",
    "--tokenizer",
)
SGLANG = Program(
    "SGLang", "sglang", ("python3", "-m", "sglang.launch_server"), "lmsysorg/sglang:latest",
    ("python3", "-m", "sglang.launch_server"), ("--model-path",), "--context-length", "--tokenizer-path",
)  # fmt: skip
VLLM_PLUGINS = {"gguf": "vllm-gguf-plugin", "bitsandbytes": "vllm-bnb-plugin"}


def vllm(request: Request) -> Exported:
    """Errors: Unsupported where it does not open the format."""
    return _exported(VLLM, request)


def sglang(request: Request) -> Exported:
    """Errors: Unsupported where it does not open the format."""
    return _exported(SGLANG, request)


def _exported(program: Program, request: Request) -> Exported:
    flags, notes = served(program, request)
    made = Exported(notes=notes)
    port = str(request.port)
    folder = request.folder_from_out
    model, tokenizer = _paths(request, folder)
    command = [*program.start, *(() if program is VLLM else program.model), model, *flags]
    command += [*((program.tokenizer, tokenizer) if tokenizer else ()), "--host", "127.0.0.1", "--port", port]
    made.texts["serve.sh"] = _script(program, notes, command)
    made.scripts = ("serve.sh",)
    model, _ = _paths(request, _INSIDE)
    inside = [*program.entry, *program.model, model, *flags]
    if tokenizer:
        inside += [program.tokenizer, _TOKENIZER if tokenizer is SOURCE else tokenizer]
    inside += ["--host", "0.0.0.0", "--port", port]
    made.texts["compose.yaml"] = _compose(program, request, folder, inside, tokenizer is SOURCE)
    made.start = "sh serve.sh"
    return made


def served(program: Program, request: Request) -> tuple[list[str], list[str]]:
    """Flags, and what a person should know. Errors: Unsupported where it does not open the format."""
    manifest = request.artifact.manifest
    method = manifest.recipe["method"]
    flags, notes = ["--served-model-name", request.name], []
    gguf = request.artifact.gguf is not None
    quantization = {} if gguf else _quantization(request.config)
    if program is VLLM and (why := refused_by_vllm(quantization)):
        raise Unsupported(
            f"{request.artifact.folder}: is {manifest.recipe_short}, which vLLM 0.32 refuses ({why}; seen on "
            "a processor, read in its code for GPUs): convert the source with --to gptq-int4, awq-int4 or "
            "ct-w4a16 and export that"
        )
    if not gguf and program.runtime not in manifest.loads_in:
        raise Unsupported(
            f"{request.artifact.folder}: is {manifest.recipe_short}, which {program.name} does not open: "
            "convert the source with --to gptq-int4, awq-int4 or ct-w4a16 and export that"
        )
    if gguf:
        _, header = request.gguf(program.name)
        length, templated = gguf_context(header.kvs), "tokenizer.chat_template" in header.kvs
        kind = "gguf"
        if program is SGLANG:
            flags += ["--load-format", "gguf", "--quantization", "gguf"]
        if manifest.source.hub_id is None:
            notes.append(
                "a GGUF needs the tokenizer of its source: give its folder as $TOKENIZER "
                f"({program.tokenizer}); the source was not on the Hub"
            )
        else:
            notes.append(f"its tokenizer is that of {manifest.source.hub_id}, which is fetched from the Hub")
    else:
        config = request.config
        length = whole(config.get("max_position_embeddings"))
        templated = _has_template(request)
        kind = str(quantization.get("quant_method") or "dense")
        if kind == "bitsandbytes" and program is SGLANG:
            flags += ["--load-format", "bitsandbytes"]
        bits = whole(quantization.get("bits"))
        if kind == "gptq" and bits in (2, 3):  # no Marlin kernel: the plain one computes in float16
            flags += ["--dtype", "float16"]
        if program is VLLM and kind == "gptq" and bits == 8:
            notes.append(
                "vLLM 0.32 refuses GPTQ of 8 bits on a processor (Marlin does not support weight_bits = "
                "uint8b128); on a GPU its code takes them, which was read and not run"
            )
    if program is VLLM and kind in VLLM_PLUGINS:
        plugin = VLLM_PLUGINS[kind]
        notes.append(f"vLLM 0.24 and later open {kind} through a plugin only: pip install {plugin}")
    if "--dtype" not in flags:
        flags += ["--dtype", "auto"]
    wanted = request.context or length
    if wanted is not None:
        flags += [program.length, str(wanted)]
    if not templated:
        notes.append("it has no chat template: /v1/completions answers, /v1/chat/completions does not")
    if manifest.source.remote_code:
        notes.append(
            f"the source brings code of its own ({method}): {program.name} needs --trust-remote-code, which "
            "is not written here"
        )
    return flags, notes


def _quantization(config: dict[str, object]) -> dict[str, object]:
    quantization = config.get("quantization_config")
    return quantization if isinstance(quantization, dict) else {}


def _has_template(request: Request) -> bool:
    return bool(folder_templates(request.artifact.folder))


def _paths(request: Request, folder: str) -> tuple[str, str]:
    """Of the model in ``folder``, and of the tokenizer, or "": the model's own."""
    gguf = request.artifact.gguf
    if gguf is None:
        return folder, ""
    file = os.path.join(folder, str(gguf.relative_to(request.artifact.folder)))
    return file, request.artifact.manifest.source.hub_id or SOURCE


def _script(program: Program, notes: Sequence[str], command: Sequence[str]) -> str:
    lines = ["#!/bin/sh", f"# Serves the model with {program.name} on this machine alone (127.0.0.1)."]
    lines += [f"# {printable(note)}" for note in notes]
    lines += ["set -eu", 'cd "$(dirname "$0")"']
    if any(word is SOURCE for word in command):
        lines.append(': "${TOKENIZER:?set it to the folder of the source model}"')
    words = ['"$TOKENIZER"' if word is SOURCE else shell(word) for word in command]
    lines.append(f'exec {" ".join(words)} "$@"')
    return "\n".join(lines) + "\n"


def _compose(program: Program, request: Request, folder: str, arguments: Sequence[str], source: bool) -> str:
    """Every value is a JSON string, which YAML reads; a dollar is doubled, so that compose replaces nothing.
    ``source``: the source's folder is needed too."""

    def value(text: str) -> str:
        return json.dumps(text.replace("$", "$$"))

    wanted = '"${TOKENIZER:?set it to the folder of the source model}"'
    mounts = [(value(folder), _INSIDE), *([(wanted, _TOKENIZER)] if source else [])]
    lines = [
        "services:",
        "  model:",
        f"    image: {value(program.image)}",
        f"    command: [{', '.join(value(each) for each in arguments)}]",
        "    ports:",
        f"      - {value(f'127.0.0.1:{request.port}:{request.port}')}",
        "    ipc: host",
        "    volumes:",
    ]
    for host, inside in mounts:
        lines += ["      - type: bind", f"        source: {host}", f"        target: {value(inside)}"]
        lines += ["        read_only: true"]
    lines += [
        "    deploy:",
        "      resources:",
        "        reservations:",
        "          devices:",
        "            - driver: nvidia",
        "              count: all",
        "              capabilities: [gpu]",
    ]
    return "\n".join(lines) + "\n"
