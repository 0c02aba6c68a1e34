"""Whatever is wrong with the input: one clear line, the right exit code, and nothing left behind.

Every case runs the command line in this process; what only a process of its own can show (a full disk) runs
in one.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from quantize.cli import cli
from quantize.errors import QuantwrightError

Break = Callable[[Path], None]


def write_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps(config))


def truncate(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def poison(value: float) -> Break:
    def apply(folder: Path) -> None:
        import torch
        from safetensors.torch import load_file as load_torch
        from safetensors.torch import save_file as save_torch

        tensors = load_torch(folder / "model.safetensors")
        name = "model.layers.1.mlp.down_proj.weight"
        tensors[name] = tensors[name].clone()
        tensors[name][3, 5] = torch.tensor(value, dtype=tensors[name].dtype)
        save_torch(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def index_names_unknown_tensor(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    index = {"metadata": {}, "weight_map": {"no.such.weight": "weights.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def index_is_no_json(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text("x")


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def wrong_offsets(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = next(n for n in header if n != "__metadata__")
    header[name]["shape"][0] += 1
    new = json.dumps(header).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + data[8 + length :])


def float8_tensor(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    tensors = load_torch(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].to(
        torch.float8_e4m3fn
    )
    save_torch(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def drop_tensor(folder: Path) -> None:
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    tensors = load_torch(folder / "model.safetensors")
    del tensors["model.layers.1.self_attn.q_proj.weight"]
    save_torch(tensors, folder / "model.safetensors", metadata={"format": "pt"})


# name -> (what is done to a good checkpoint, recipe, exit code, words the message holds)
CHECKPOINTS: dict[str, tuple[Break, str, int, tuple[str, ...]]] = {
    "no config.json": (lambda f: (f / "config.json").unlink(), "bfloat16", 2, ("no config.json",)),
    "config.json is not JSON": (lambda f: (f / "config.json").write_text("{"), "bfloat16", 2, ("config.json",
    "not valid JSON")),
    "config.json is a list": (lambda f: (f / "config.json").write_text("[]"), "bfloat16", 2, ("JSON object",
    )),
    "no tokenizer": (no_tokenizer, "bfloat16", 2, ("no tokenizer", "tokenizer.json")),
    "truncated weights": (lambda f: truncate(f / "model.safetensors", 0.7), "gguf-q8_0", 2, ("truncated",
    "fetch the file")),
    "truncated header": (lambda f: truncate(f / "model.safetensors", 0.0001), "gguf-q8_0", 2, ("truncated",)),
    "empty weights file": (lambda f: (f / "model.safetensors").write_bytes(b""), "bfloat16", 2, ("truncated",
    )),
    "weights are an HTML page": (
        lambda f: (f / "model.safetensors").write_text("<html>" * 20), "bfloat16", 2, ("not safetensors",),
    ),
    "shape does not fill its bytes": (wrong_offsets, "bfloat16", 2, ("does not fill",)),
    "missing shard": (missing_shard, "bfloat16", 2, ("model-00002-of-00002.safetensors", "missing")),
    "index names an unknown tensor": (index_names_unknown_tensor, "bfloat16", 2, ("no.such.weight",)),
    "index is not JSON": (index_is_no_json, "bfloat16", 2, ("index", "not valid JSON")),
    "pickle weights only": (pickle_only, "bfloat16", 2, ("pickle", "safetensors")),
    "no weights at all": (lambda f: (f / "model.safetensors").unlink(), "bfloat16", 2,
    ("no .safetensors weights",)),
    "already quantized (GPTQ)": (
        lambda f: write_config(f, quantization_config={"quant_method": "gptq", "bits": 4}), "bfloat16", 2,
        ("already quantized",),
    ),
    "already quantized (float8 tensors)": (float8_tensor, "gguf-q8_0", 2, ("already quantized", "F8_E4M3")),
    "needs remote code": (
        lambda f: write_config(f, model_type="mystery", auto_map={"AutoModelForCausalLM": "m.Model"}),
        "bfloat16", 2, ("--trust-remote-code",),
    ),
    "unknown architecture to GGUF": (
        lambda f: write_config(f, architectures=["MysteryForCausalLM"]), "gguf-q8_0", 2,
        ("MysteryForCausalLM", "LlamaFor"),
    ),
    "a tensor that the architecture needs is missing (GGUF)": (drop_tensor, "gguf-q8_0", 2,
    ("layers.1.self_attn.q_proj",)),
    "NaN in a weight (GGUF)": (poison(float("nan")), "gguf-q8_0", 1, ("layers.1.mlp.down_proj", "NaN",
    "[3, 5]")),
    "Inf in a weight (GGUF)": (poison(float("inf")), "gguf-q4_k_m", 1, ("layers.1.mlp.down_proj", "Inf")),
    "NaN in a weight (dense)": (poison(float("nan")), "float16", 1, ("layers.1.mlp.down_proj", "NaN")),
    "NaN in a weight (quanto)": (poison(float("nan")), "quanto-int8", 1, ("layers.1.mlp.down_proj", "NaN")),
    "NaN in a weight (bitsandbytes)": (poison(float("nan")), "bnb-nf4", 1, ("layers.1.mlp.down_proj", "NaN")),
    "NaN in a weight (GPTQ)": (poison(float("nan")), "gptq-int4", 1, ("layers.1.mlp.down_proj", "NaN")),
    "NaN in a weight (AWQ)": (poison(float("nan")), "awq-int4", 1, ("layers.1.mlp.down_proj", "NaN")),
}  # fmt: skip

# name -> (--to, words the message holds)
RECIPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "misspelled": ("gguf-q4_k_n", ("unknown recipe", "gguf-q4_k_m")),
    "unknown": ("zzz", ("unknown recipe", "methods")),
    "empty": (",", ("no recipe",)),
    "misspelled parameter": ("gptq-int4:grup_size=64", ("grup_size", "group_size")),
    "parameter without a value": ("gptq-int4:group_size", ("key=value",)),
    "bits out of range": ("gptq:bits=5", ("bits",)),
    "group size is not a number": ("gptq-int4:group_size=many", ("group_size",)),
    "group size out of range": ("gptq-int4:group_size=-7", ("group_size",)),
    "GPTQ group that does not divide": ("gptq-int4:group_size=1024", ("1024", "divide")),
    "AWQ group that does not divide": ("awq-int4:group_size=1024", ("group_size", "-1, 32, 64 or 128")),
    "unknown GGUF type": ("gguf:type=q9_k", ("type",)),
    "quanto weights unknown": ("quanto:weights=int5", ("weights",)),
    "bnb kind unknown": ("bnb:kind=nf5", ("bnb",)),
}


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """What ``quantwright ARGUMENTS`` exits with, and the message it would print."""
    import click

    try:
        code = cli.main(arguments, standalone_mode=False)
        return int(code or 0), capsys.readouterr().err
    except QuantwrightError as error:
        return error.exit_code, str(error)
    except click.ClickException as error:
        return 2, error.format_message()


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="session")
def good(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint()


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoint(case: str, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, recipe, expected, words = CHECKPOINTS[case]
    model, work = tmp_path / "model", tmp_path / "work"
    shutil.copytree(good, model)
    work.mkdir()
    spoil(model)
    code, message = run(["convert", str(model), "--to", recipe, "-o", str(work / "a" / "out")], capsys)
    assert (code, [w for w in words if w not in message]) == (expected, []), message
    assert "\n" not in message.strip()
    assert left_behind(work) == []


@pytest.mark.parametrize("case", RECIPES)
def test_recipe(case: str, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, words = RECIPES[case]
    code, message = run(["convert", str(good), "--to", recipe, "-o", str(tmp_path / "out")], capsys)
    assert (code, [w for w in words if w not in message]) == (2, []), message
    assert left_behind(tmp_path) == []


def test_output_exists(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("keep me")
    code, message = run(["convert", str(good), "--to", "bfloat16", "-o", str(tmp_path / "out")], capsys)
    assert code == 2
    assert "--force" in message
    assert (tmp_path / "out" / "precious").read_text() == "keep me"
    forced = [
        "convert",
        str(good),
        "--to",
        "bfloat16",
        "-o",
        str(tmp_path / "out"),
        "--force",
        "--verify",
        "none",
    ]
    code, message = run(forced, capsys)
    assert code == 2
    assert "holds precious and no manifest.json" in message
    (tmp_path / "out" / "precious").unlink()
    for _ in range(2):  # an empty folder, then an artifact
        code, _ = run(forced, capsys)
        assert code == 0
    assert left_behind(tmp_path) == ["out"]
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_forced_conversion_that_fails_keeps_what_was_there(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(good, model)
    poison(float("nan"))(model)
    assert (
        run(
            ["convert", str(good), "--to", "float16", "-o", str(tmp_path / "out"), "--verify", "none"], capsys
        )[0]
        == 0
    )
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    code, _ = run(
        ["convert", str(model), "--to", "gguf-q8_0", "-o", str(tmp_path / "out"), "--force"], capsys
    )
    assert code == 1
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before
    assert left_behind(tmp_path) == ["model", "out"]


@pytest.mark.parametrize(
    ("model", "code", "words"),
    [
        ("no/such/folder/here", 2, ("no such folder",)),
        ("./nothing", 2, ("no such folder",)),
        ("someorg/somemodel", 1, ("cannot be reached", "HF_HUB_OFFLINE")),
        ("someorg/somemodel@main", 1, ("cannot be reached",)),
        ("bad name!", 2, ("no such folder",)),
    ],
)
def test_model_that_is_not_there(
    model: str,
    code: int,
    words: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    got, message = run(["convert", model, "--to", "bfloat16", "-o", str(tmp_path / "out")], capsys)
    assert (got, [w for w in words if w not in message]) == (code, []), message
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--calibration", "no-such-file.txt"], ("no-such-file.txt", "no such text file")),
        (["--calibration", "mydata"], ("neither a text file nor",)),
        (["--calibration", "EMPTY"], ("is empty",)),
        (["--calibration", "BINARY"], ("not UTF-8",)),
        (["--calibration", "SHORT"], ("fewer than",)),
        (["--calibration-tokens", "3"], ("calibration-tokens",)),
        (["--threads", "0"], ("threads",)),
        (["--memory", "lots"], ("lots", "8GiB")),
        (["--verify", "maybe"], ("verify",)),
    ],
)
def test_option(
    options: list[str], words: tuple[str, ...], good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "EMPTY.txt").write_text("  \n")
    (texts / "BINARY.txt").write_bytes(b"\xff\xfe\x00")
    (texts / "SHORT.txt").write_text("A few words.")
    options = [str(texts / f"{o}.txt") if o in ("EMPTY", "BINARY", "SHORT") else o for o in options]
    code, message = run(
        ["convert", str(good), "--to", "gptq-int4", "-o", str(tmp_path / "out"), *options], capsys
    )
    assert (code, [w for w in words if w not in message]) == (2, []), message
    assert left_behind(tmp_path) == ["texts"]


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, message = run(["convrt"], capsys)
    assert code == 2
    assert "convert" in message


def test_folder_that_cannot_be_written(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, message = run(["convert", str(good), "--to", "bfloat16", "-o", "/proc/nowhere/out"], capsys)
    assert code in (1, 2)
    assert "cannot be written" in message or "No such file" in message


@pytest.mark.parametrize("recipe", ["gguf-f32", "float32", "quanto-int8", "bnb-int8"])
def test_full_disk(recipe: str, good: Path, tmp_path: Path) -> None:
    """On a real file system of 2 MB, in a mount namespace of the test's own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    namespace = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=2m none {disk}"
    if shutil.which("unshare") is None or subprocess.run([*namespace, mount], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    convert = f"{sys.executable} -m quantize.cli convert {good} --to {recipe} -o {disk}/a/out"
    script = f"{mount} && {convert}; code=$?; ls -A {disk}; exit $code"
    done = subprocess.run([*namespace, script], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "the disk is full" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert done.stdout.strip() == ""
