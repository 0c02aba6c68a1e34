"""Folders for other programs: what is in them, and that nothing from an artifact escapes its quotes."""

import ast
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from chat_artifact import again, gguf_artifact
from chat_cases import CHATML, EXPRESSIBLE, INEXPRESSIBLE
from click.testing import CliRunner
from sample_artifact import make_artifact

from quantize.artifact.artifact import Artifact
from quantize.cli import cli
from quantize.errors import BadInput, QuantwrightError, Unsupported
from serving.export import TARGETS, export
from serving.llamafile import ALIGNMENT
from serving.ollama import quoted

HOSTILE = (
    "$(touch PWNED)`touch PWNED`",
    "a'b\"c\\d",
    '"""\nSYSTEM """x',
    "${HOME} $$ %s {{ .Prompt }}",
    "x: [y]\n- z # {}",
    "--port 1; touch PWNED",
    "\x1b[31m\u202e\x00\x07",
)


def modelfile(text: str) -> list[tuple[str, str]]:
    """Commands and values, as ollama's parser reads them: triple quotes to triple quotes, quotes to quotes,
    else to the line's end; what does not print is dropped."""
    found = []
    text = "".join(c for c in text if c in "\n\t " or c.isprintable())
    while text := text.lstrip("\n "):
        name, _, rest = text.partition(" ")
        if name == "PARAMETER":
            parameter, _, rest = rest.partition(" ")
            name = f"{name} {parameter}"
        for quote in ('"""', '"', ""):
            if rest.startswith(quote):
                value, _, text = rest[len(quote) :].partition(quote or "\n")
                break
        found.append((name, value))
    return found


def folder_artifact(folder: Path, recipe: str = "gptq-int4", config: Any = None, **changes: Any) -> Artifact:
    made = make_artifact(folder, recipe, loads_in=("transformers", "vllm", "sglang"), **changes)
    config = config or {
        "quantization_config": {"quant_method": "gptq", "bits": 4},
        "max_position_embeddings": 8192,
    }
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return again(made)


def run(*arguments: object) -> tuple[int, dict[str, Any], str]:
    result = CliRunner().invoke(cli, ["export", *map(str, arguments), "--json"], standalone_mode=False)
    if isinstance(result.exception, QuantwrightError):
        return result.exception.exit_code, {}, str(result.exception)
    assert result.exception is None, result.exc_info
    return result.return_value, json.loads(result.stdout.splitlines()[-1]), result.stderr


def test_modelfile_of_a_chat_model(tmp_path: Path) -> None:
    settings = {
        "general__sampling__temp": 0.6,
        "general__sampling__top_k": 20,
        "general__sampling__top_p": 0.95,
    }
    artifact = gguf_artifact(tmp_path / "a", CHATML, **settings)
    code, document, _ = run(artifact.folder, "--for", "ollama", "-o", tmp_path / "out", "--name", "My Model!")
    assert (code, document["lost"]) == (0, [])
    assert document["start"] == "ollama create my-model -f Modelfile"
    commands = modelfile((tmp_path / "out" / "Modelfile").read_text())
    assert [name for name, _ in commands] == [
        "FROM", "TEMPLATE", "PARAMETER stop", "PARAMETER stop", "PARAMETER temperature", "PARAMETER top_k",
        "PARAMETER top_p",
    ]  # fmt: skip
    assert [value for _, value in commands][2:] == ["</s>", "<|im_end|>", "0.6", "20", "0.95"]
    linked = tmp_path / "out" / commands[0][1]
    assert linked.samefile(artifact.gguf or "")


def test_bos_that_the_tokenizer_adds_is_not_in_the_template(tmp_path: Path) -> None:
    template = EXPRESSIBLE["trimmed, BOS"]
    for add_bos in (False, True):
        artifact = gguf_artifact(tmp_path / f"a{add_bos}", template, add_bos)
        out = tmp_path / f"out{add_bos}"
        export(artifact.folder, "ollama", out)
        assert ("<s>" in (out / "Modelfile").read_text()) is not add_bos


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_templates_come_back_from_a_modelfile(name: str, tmp_path: Path) -> None:
    """Whatever the template writes: quotes, controls and Go's own marks."""
    artifact = gguf_artifact(tmp_path / "a", EXPRESSIBLE[name])
    made = export(artifact.folder, "ollama", tmp_path / "out")
    assert made.lost == []
    text = (tmp_path / "out" / "Modelfile").read_text()
    template = dict(modelfile(text))["TEMPLATE"]
    assert f'"""{template}"""' in text
    assert "PARAMETER" not in template


@pytest.mark.parametrize("name", INEXPRESSIBLE)
def test_what_is_lost_ends_in_1_unless_accepted(name: str, tmp_path: Path) -> None:
    text, word = INEXPRESSIBLE[name]
    artifact = gguf_artifact(tmp_path / "a", text)
    code, document, log = run(artifact.folder, "--for", "ollama", "-o", tmp_path / "out")
    assert code == 1
    assert any(word in line for line in document["lost"])
    assert "--lossy" in log
    assert (tmp_path / "out" / "Modelfile").is_file()
    code, _, _ = run(artifact.folder, "--for", "ollama", "-o", tmp_path / "out", "--force", "--lossy")
    assert code == 0


def test_a_template_that_cannot_run_leaves_nothing(tmp_path: Path) -> None:
    artifact = gguf_artifact(tmp_path / "a", "{{ 'x' * 10 ** 12 }}")
    with pytest.raises(BadInput, match="was stopped"):
        export(artifact.folder, "ollama", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


@pytest.mark.parametrize(
    "stop", ['a"b', "<|x|>", " two words ", "\n\nUser:", 'ends"', '"""', "\x00", "a\u00a0b"]
)
def test_stops_are_written_or_said_to_be_lost(stop: str, tmp_path: Path) -> None:
    tokens = ["<unk>", "<s>", stop, "a", "b", "c", "d", "e"]
    artifact = gguf_artifact(tmp_path / "a", CHATML, tokens=tokens, kinds=[2, 3, 3, 1, 1, 1, 1, 1])
    made = export(artifact.folder, "ollama", tmp_path / "out")
    stops = [v for n, v in modelfile((tmp_path / "out" / "Modelfile").read_text()) if n == "PARAMETER stop"]
    if quoted(stop) is None:
        assert any("cannot be written" in line for line in made.lost)
        assert stops == []
    else:
        assert stops == [stop]


@pytest.mark.parametrize("target", ["ollama", "lmstudio", "llamafile"])
def test_programs_of_gguf_refuse_folders(target: str, tmp_path: Path) -> None:
    artifact = folder_artifact(tmp_path / "a")
    with pytest.raises(Unsupported, match="--to gguf-q4_k_m"):
        export(artifact.folder, target, tmp_path / "out")


def test_vllm_refuses_what_it_does_not_open(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "a", "quanto-int8", loads_in=("optimum-quanto",))
    for target in ("vllm", "sglang"):
        with pytest.raises(Unsupported, match="--to gptq-int4"):
            export(artifact.folder, target, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "word"),
    [({"desc_act": True}, "desc_act=True"), ({"bits": 3}, "bits=3"), ({"sym": False}, "sym=False")],
)
def test_vllm_refuses_gptq_that_it_no_longer_opens(change: dict[str, Any], word: str, tmp_path: Path) -> None:
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, **change}
    artifact = folder_artifact(tmp_path / "a", config={"quantization_config": quantization})
    with pytest.raises(Unsupported, match=rf"vLLM 0.32 refuses \(.*{word}"):
        export(artifact.folder, "vllm", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export(artifact.folder, "sglang", tmp_path / "out")


def arguments_of(out: Path, **environment: str) -> list[str]:
    """What serve.sh starts, by the shell itself: programs of these names that print what they are given."""
    tools = out.parent / "tools"
    tools.mkdir(exist_ok=True)
    for name in ("vllm", "python3"):
        program = f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n"
        (tools / name).write_text(program)
        (tools / name).chmod(0o755)
    environment = {"PATH": f"{tools}:/usr/bin:/bin", **environment}
    done = subprocess.run(["sh", str(out / "serve.sh")], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("target", ["vllm", "sglang"])
def test_names_stay_in_their_quotes(target: str, name: str, tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s $HOME `x` "y"'
    artifact = folder_artifact(folder)
    export(artifact.folder, target, tmp_path / "out", name=name)
    given = arguments_of(tmp_path / "out")
    served = given[given.index("--served-model-name") + 1]
    assert "\n" not in served
    assert "\x1b" not in served
    assert (tmp_path / "out" / given[2 if target == "sglang" else 1]).resolve() == folder or folder in [
        (tmp_path / "out" / each).resolve() for each in given if "it's" in each
    ]
    compose = yaml.safe_load((tmp_path / "out" / "compose.yaml").read_text())
    model = compose["services"]["model"]
    inside = [each.replace("$$", "$") for each in model["command"]]
    assert not any(re.search(r"(?<!\$)(?:\$\$)*\$(?!\$)", each) for each in model["command"])
    assert inside[inside.index("--served-model-name") + 1] == served
    assert model["ports"] == [
        f"127.0.0.1:{8000 if target == 'vllm' else 30000}:{8000 if target == 'vllm' else 30000}"
    ]
    source = model["volumes"][0]["source"].replace("$$", "$")
    assert (tmp_path / "out" / source).resolve() == folder
    assert not list(tmp_path.rglob("PWNED"))


@pytest.mark.parametrize(
    ("target", "config", "flags", "word"),
    [
        ("vllm", {"quant_method": "gptq", "bits": 4}, ["--dtype", "auto"], ""),
        ("vllm", {"quant_method": "gptq", "bits": 8}, ["--dtype", "auto"], "8 bits on a processor"),
        ("sglang", {"quant_method": "gptq", "bits": 3}, ["--dtype", "float16"], ""),
        ("vllm", {"quant_method": "compressed-tensors"}, ["--dtype", "auto"], ""),
        ("vllm", {"quant_method": "bitsandbytes"}, ["--dtype", "auto"], "vllm-bnb-plugin"),
        ("sglang", {"quant_method": "bitsandbytes"}, ["--load-format", "bitsandbytes"], ""),
    ],
)
def test_flags_of_formats(
    target: str, config: dict[str, Any], flags: list[str], word: str, tmp_path: Path
) -> None:
    artifact = folder_artifact(
        tmp_path / "a",
        config={"quantization_config": config, "text_config": {"max_position_embeddings": 4096}},
    )
    made = export(artifact.folder, target, tmp_path / "out", port=9000)
    given = arguments_of(tmp_path / "out")
    assert given[given.index(flags[0]) + 1] == flags[1]
    length = "--max-model-len" if target == "vllm" else "--context-length"
    assert given[given.index(length) + 1] == "4096"
    assert given[-4:] == ["--host", "127.0.0.1", "--port", "9000"]
    assert any(word in note for note in made.notes)


@pytest.mark.parametrize("target", ["vllm", "sglang"])
def test_a_gguf_names_its_tokenizer(target: str, tmp_path: Path) -> None:
    hub = gguf_artifact(tmp_path / "hub", CHATML)
    made = export(hub.folder, target, tmp_path / "out")
    flag = "--tokenizer" if target == "vllm" else "--tokenizer-path"
    given = arguments_of(tmp_path / "out")
    assert given[given.index(flag) + 1] == "org/small"
    assert ("plugin" in " ".join(made.notes)) is (target == "vllm")
    local = gguf_artifact(tmp_path / "local", CHATML, source={"id": "small", "revision": None})
    export(local.folder, target, tmp_path / "local-out", name="--tokenizer --tokenizer-path")
    given = arguments_of(tmp_path / "local-out", TOKENIZER="/the source's folder")
    assert given[given.index(flag) + 1] == "/the source's folder"
    compose = (tmp_path / "local-out" / "compose.yaml").read_text()
    assert yaml.safe_load(compose)["services"]["model"]["volumes"][1]["source"].startswith("${TOKENIZER:?")


def test_folders_of_lmstudio(tmp_path: Path) -> None:
    artifact = gguf_artifact(tmp_path / "a", CHATML)
    export(artifact.folder, "lmstudio", tmp_path / "out", name="../../me/Small model")
    file = tmp_path / "out" / "me" / "Small-model" / "small-Q4_K_M.gguf"
    found = list((tmp_path / "out").rglob("*.gguf"))
    assert len(found) == 1
    assert found[0].samefile(artifact.gguf or "")
    assert found[0].parts[-2:] == file.parts[-2:]
    assert found[0].resolve().is_relative_to(tmp_path / "out")


@pytest.mark.parametrize("with_zip", [False, True])
def test_a_llamafile_holds_the_model_aligned(with_zip: bool, tmp_path: Path) -> None:
    binary = tmp_path / "llamafile"
    binary.write_text("#!/bin/sh\necho started; exit 0\n")
    if with_zip:
        with zipfile.ZipFile(binary, "a") as archive:
            archive.writestr("usr/share/x", "kept" * 1000, compress_type=zipfile.ZIP_DEFLATED)
    artifact = gguf_artifact(tmp_path / "a", CHATML)
    made = export(artifact.folder, "llamafile", tmp_path / "out", binary=binary, name="small")
    out = tmp_path / "out" / "small.llamafile"
    assert made.start == "./small.llamafile"
    assert out.stat().st_mode & stat.S_IXUSR
    done = subprocess.run([out], capture_output=True, text=True)
    assert done.stdout == "started\n"
    with zipfile.ZipFile(out) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert archive.read(".args").decode().splitlines()[:2] == ["-m", "small-Q4_K_M.gguf"]
        assert archive.read(".args").endswith(b"\n...\n")
        assert ("usr/share/x" in names) is with_zip
        if with_zip:
            assert archive.read("usr/share/x") == b"kept" * 1000
        info = archive.getinfo("small-Q4_K_M.gguf")
        assert info.compress_type == zipfile.ZIP_STORED
        assert artifact.gguf is not None
        model = artifact.gguf.read_bytes()
        assert archive.read(info) == model
    raw = out.read_bytes()
    begin = raw.index(model)
    assert begin % ALIGNMENT == 0
    again_out = tmp_path / "again"
    export(artifact.folder, "llamafile", again_out, binary=binary, name="small")
    assert (again_out / "small.llamafile").read_bytes() == raw
    if shutil.which("unzip"):
        assert subprocess.run(["unzip", "-tqq", out], capture_output=True).returncode in (0, 1)


def test_what_is_no_llamafile_is_refused(tmp_path: Path) -> None:
    artifact = gguf_artifact(tmp_path / "a", CHATML)
    text = tmp_path / "text"
    text.write_text("hello")
    for binary, word in ((text, "not a program"), (tmp_path / "missing", "cannot be read")):
        with pytest.raises(BadInput, match=word):
            export(artifact.folder, "llamafile", tmp_path / "out", binary=binary)
    with pytest.raises(BadInput, match="belongs to --for llamafile"):
        export(artifact.folder, "ollama", tmp_path / "out", binary=text)
    full = tmp_path / "full"
    full.write_text("#!/bin/sh\n")
    with zipfile.ZipFile(full, "a") as archive:
        archive.writestr(".args", "-m\nother.gguf\n")
    with pytest.raises(BadInput, match=r"holds \.args already"):
        export(artifact.folder, "llamafile", tmp_path / "out", binary=full)
    assert not (tmp_path / "out").exists()
    made = export(artifact.folder, "llamafile", tmp_path / "parts")
    assert any("releases" in note for note in made.notes)


@pytest.mark.parametrize("name", HOSTILE)
def test_the_script_is_python_whatever_the_folder_is_called(name: str, tmp_path: Path) -> None:
    folder = tmp_path / re.sub("[\x00/]", "_", name)
    artifact = folder_artifact(folder)
    export(artifact.folder, "transformers", tmp_path / "out")
    script = (tmp_path / "out" / "chat.py").read_text()
    texts = [
        n.value
        for n in ast.walk(ast.parse(script))
        if isinstance(n, ast.Constant) and isinstance(n.value, str)
    ]
    assert os.path.relpath(folder, tmp_path / "out") in texts


def test_damaged_artifacts_and_taken_folders(tmp_path: Path) -> None:
    artifact = gguf_artifact(tmp_path / "a", CHATML)
    out = tmp_path / "out"
    code, _, error = run(tmp_path / "nowhere", "--for", "ollama", "-o", out)
    assert (code, "manifest.json" in error) == (2, True)
    export(artifact.folder, "ollama", out)
    with pytest.raises(BadInput, match="already exists"):
        export(artifact.folder, "ollama", out)
    (out / "mine.txt").write_text("x")
    with pytest.raises(BadInput, match=r"mine\.txt"):
        export(artifact.folder, "ollama", out, force=True)
    with pytest.raises(BadInput, match=r"holds no export\.json|an input that would be lost"):
        export(artifact.folder, "ollama", artifact.folder, force=True)
    assert artifact.gguf is not None
    raw = bytearray(artifact.gguf.read_bytes())
    raw[-1] ^= 1
    artifact.gguf.unlink()
    artifact.gguf.write_bytes(raw)
    with pytest.raises(BadInput, match="does not match its sha256"):
        export(artifact.folder, "ollama", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_hostile_metadata_is_one_line_each(tmp_path: Path) -> None:
    artifact = gguf_artifact(
        tmp_path / "a", CHATML.replace("<|im_end|>", "\\u001b[31m\\u202e"), file="we ird $(x) 'name'.gguf"
    )
    for target in TARGETS:
        if target == "transformers":
            continue
        made = export(artifact.folder, target, tmp_path / target, name="\x1b[31mred\nline")
        for file in made.texts:
            text = (tmp_path / target / file).read_text()
            assert "\x1b" not in text
            assert "\u202e" not in text
        assert all("\n" not in line for line in (*made.lost, *made.notes, made.start))
