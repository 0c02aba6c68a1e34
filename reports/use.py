"""How a published model is opened, checked and attested: the commands on its card."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from quantize.artifact.artifact import Artifact
from quantize.kernels.releases import REPOSITORY, commit_of, release_of
from quantize.methods.registry import format_of
from quantize.terminal import shell
from reports.markdown import code, escape

#: what opens the whole of a model that also sees
WHOLE = "AutoModelForImageTextToText"
PROMPT = "The history of"
_SAY = [
    f"inputs = tokenizer({PROMPT!r}, return_tensors='pt')",
    "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=32)[0]))",
]


def use(artifacts: Sequence[Artifact], files: Sequence[str], repo: str) -> list[str]:
    """``files``: paths in the repository. A block for every program that is known to open it."""
    loads = list(dict.fromkeys(name for a in artifacts for name in a.manifest.loads_in))
    gguf = next((path for path in files if path.endswith(".gguf")), None)
    blocks = _gguf(artifacts, gguf, repo, loads) if gguf else _folder(artifacts, repo, loads)
    out = ["## Use", "", *blocks]
    return [*out, f"Loads in {escape(', '.join(loads))}.", ""] if loads else out


def _block(language: str, *lines: str) -> list[str]:
    return [f"```{language}", *lines, "```", ""]


def _gguf(artifacts: Sequence[Artifact], file: str, repo: str, loads: Sequence[str]) -> list[str]:
    whole = artifacts[0].manifest
    kind = str(whole.recipe.get("type") or "").upper()
    tagged = f"{repo}:{kind}" if kind else repo
    out = ["llama.cpp, and a server that speaks OpenAI's protocol:", ""]
    out += _block(
        "sh", shell("llama-cli", "-hf", repo, "-hff", Path(file).name), shell("llama-server", "-hf", tagged)
    )
    out += ["llama-cpp-python:", ""]
    out += _block(
        "python",
        "from llama_cpp import Llama",
        "",
        f"model = Llama.from_pretrained({repo!r}, {file!r}, verbose=False)",
        f"print(model({PROMPT!r}, max_tokens=32)['choices'][0]['text'])",
    )
    if "Ollama" in loads:
        out += ["Ollama:", "", *_block("sh", shell("ollama", "run", f"hf.co/{tagged}"))]
    if "LM Studio" in loads:
        out += ["LM Studio:", "", *_block("sh", shell("lms", "get", f"https://huggingface.co/{repo}"))]
    if "transformers" in loads:
        out += [
            "transformers, which dequantizes the weights when it opens them:",
            "",
            *_block(
                "python",
                "from transformers import AutoModelForCausalLM, AutoTokenizer",
                "",
                f"model = AutoModelForCausalLM.from_pretrained({repo!r}, gguf_file={file!r})",
                f"tokenizer = AutoTokenizer.from_pretrained({repo!r}, gguf_file={file!r})",
                *_SAY,
            ),
        ]
    return out


def _folder(artifacts: Sequence[Artifact], repo: str, loads: Sequence[str]) -> list[str]:
    manifest = artifacts[0].manifest
    made_as = format_of(str(manifest.recipe["method"]))
    also_sees = manifest.source.architecture.endswith("ForConditionalGeneration")
    out = [made_as.opening_advice, ""] if made_as.opening_advice else []
    out += _block("python", *_python(*made_as.opened_by, also_sees, repo))
    if "gptqmodel" in loads:
        out += [
            "GPTQModel, with its own kernels:",
            "",
            *_block(
                "python",
                "from gptqmodel import GPTQModel",
                "",
                f"model = GPTQModel.load({repo!r})",
                f"print(model.tokenizer.decode(model.generate({PROMPT!r}, max_new_tokens=32)[0]))",
            ),
        ]
    if "vllm" in loads:
        from_024 = made_as.storage == "bitsandbytes"
        plugin = " (0.24 and later: with the plugin vllm-bnb-plugin)" if from_024 else ""
        out += [f"vLLM{plugin}:", "", *_block("sh", shell("vllm", "serve", repo))]
    if "sglang" in loads:
        command = shell("python3", "-m", "sglang.launch_server", "--model-path", repo)
        out += ["SGLang:", "", *_block("sh", command)]
    return out


def _python(module: str, name: str, also_sees: bool, repo: str) -> list[str]:
    if also_sees and module == "optimum.quanto":
        module, name = "optimum.quanto.models.transformers_models", "QuantizedTransformersModel"
        imports = [f"from {module} import {name}", f"from transformers import {WHOLE}, AutoTokenizer"]
        imports += ["", "", f"class Whole({name}):", f"    auto_class = {WHOLE}", ""]
        name = "Whole"
    elif module == "transformers":
        name = WHOLE if also_sees else name
        imports = [f"from transformers import {name}, AutoTokenizer"]
    else:
        imports = [f"from {module} import {name}", "from transformers import AutoTokenizer"]
    return [
        *imports,
        "",
        f"model = {name}.from_pretrained({repo!r})",
        f"tokenizer = AutoTokenizer.from_pretrained({repo!r})",
        *_SAY,
    ]


def check_it(
    artifacts: Sequence[Artifact], files: Sequence[str], repo: str, source: str, on_hub: bool
) -> list[str]:
    """How anybody can find out that the files are what the card says. ``source``: by the card's name."""
    one = next((path for path in files if path.endswith(".gguf")), "") if len(artifacts) > 1 else ""
    where = f"DIR/{one}" if one else "DIR"
    lines = [
        shell("hf", "download", repo, "--local-dir", "DIR"),
        shell("quantwright", "verify", where, "--source", source),
        shell("quantwright", "attest", where, "--source", source, *_given(artifacts[0])),
    ]
    words = (
        "`verify` runs the files in every runtime that can load them and compares; `attest` makes them again "
        "from the source and compares the bytes."
    )
    missing = [] if on_hub else [f"{code(source)} is the source, which you need to have.", ""]
    return ["## Check it", "", words, "", *_block("sh", *lines), *missing]


def _given(artifact: Artifact) -> list[str]:
    """Files that the recipe depends on."""
    recipe = artifact.manifest.recipe
    out = ["--imatrix", str(recipe["imatrix"])] if recipe.get("imatrix_sha256") else []
    if artifact.manifest.adapter is not None:
        out += ["--adapter", artifact.manifest.adapter.name]
    return out


def engine_words(artifact: Artifact) -> str:
    """The engine as the manifest names it; llama.cpp by its release and commit, which can be looked up."""
    details: Mapping[str, object] = artifact.manifest.details
    said = details.get("llama.cpp")
    commit = commit_of(str(said.get("revision", ""))) if isinstance(said, dict) else None
    if commit is None or not isinstance(said, dict):
        return escape(artifact.manifest.engine)
    release = release_of(commit)
    link = f"[{commit}]({REPOSITORY}/commit/{commit})"
    name = (
        f"llama.cpp [{release}]({REPOSITORY}/releases/tag/{release}), commit {link}"
        if release
        else (f"llama.cpp commit {link}")
    )
    return f"{name}, as {escape(str(said.get('binding', 'llama-cpp-python')))} packs it"
