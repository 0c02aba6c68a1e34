"""A family of quantized models, from the checkpoint to somebody else's machine and its programs, by the
commands that a person types."""

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hub_person import Person
from loopback_hub import LoopbackHub, running

from quantize.hashes import sha256_file

for library in ("gptqmodel", "optimum.quanto", "bitsandbytes", "llama_cpp"):
    pytest.importorskip(library)
GGUF = ("transformers", "llama.cpp")


@dataclass(frozen=True)
class Member:
    """``runtimes``: of those that ``make setup`` installs, which open it. ``exports``: programs that take it;
    the others refuse it by name. ``opened``: modules with a from_pretrained that opens it; none of a
    GGUF file."""

    recipe: str
    repo: str
    runtimes: tuple[str, ...]
    exports: tuple[str, ...]
    opened: str = ""
    file: str = ""


SERVED = ("vllm", "sglang", "transformers")
FAMILY = (
    Member("gguf-q4_k_m", "me/small-GGUF", GGUF, ("ollama", "lmstudio", "llamafile", *SERVED),
           file="Small-4.2M-Q4_K_M.gguf"),
    Member("gguf-q8_0", "me/small-GGUF", GGUF, ("ollama", "lmstudio", "llamafile", *SERVED),
           file="Small-4.2M-Q8_0.gguf"),
    Member("gptq-int4", "me/small-GPTQ", ("transformers", "gptqmodel"), SERVED,
           "transformers.AutoModelForCausalLM"),
    Member("awq-int4", "me/small-AWQ", ("transformers", "gptqmodel"), SERVED,
           "transformers.AutoModelForCausalLM"),
    Member("bnb-nf4", "me/small-bnb", ("transformers",), SERVED, "transformers.AutoModelForCausalLM"),
    Member("quanto-int8", "me/small-quanto", ("transformers",), ("transformers",),
           "optimum.quanto.QuantizedModelForCausalLM"),
)  # fmt: skip
PROGRAMS = ("ollama", "vllm", "sglang", "lmstudio", "llamafile", "transformers")
COLLECTION = "Small, quantized"


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with running() as server:
        yield server


def published(hub: LoopbackHub, maker: Person, source: Path) -> None:
    recipes = ",".join(member.recipe for member in FAMILY)
    maker.quantwright(
        "convert", source, "--to", recipes, "-o", "made", "--calibration", "stdlib",
        "--calibration-tokens", 2048, "--calibration-length", 128, "--threads", 1,
    )  # fmt: skip
    for repo in dict.fromkeys(member.repo for member in FAMILY):
        folders = [f"made/{member.recipe}" for member in FAMILY if member.repo == repo]
        maker.quantwright(
            "publish", *folders, "--repo", repo, "--name", "Small", "--license", "apache-2.0",
            "--collection", COLLECTION,
        )  # fmt: skip
        found = hub.repositories[repo].at("main")
        assert found is not None
        card = found[1]["README.md"].decode()
        assert all(f"| `{member.recipe}` |" in card for member in FAMILY if member.repo == repo)
    (items,) = hub.collections.values()
    assert items == list(dict.fromkeys(member.repo for member in FAMILY))


def pulled(hub: LoopbackHub, reader: Person, repo: str) -> Path:
    """Every file, hashes equal to what the Hub holds."""
    folder = reader.home / repo.replace("/", "-")
    reader.pulls(repo, folder)
    found = hub.repositories[repo].at("main")
    assert found is not None
    for name, body in found[1].items():
        assert sha256_file(folder / name) == hashlib.sha256(body).hexdigest()
    return folder


def opened(reader: Person, member: Member) -> None:
    module, _, name = member.opened.rpartition(".")
    code = (
        f"from {module} import {name} as M\nfrom transformers import AutoTokenizer as T\n"
        f"model, tokenizer = M.from_pretrained({member.repo!r}), T.from_pretrained({member.repo!r})\n"
        "ids = tokenizer('The history of', return_tensors='pt')\n"
        "print(model.generate(**ids, max_new_tokens=4).shape[1] - ids.input_ids.shape[1])"
    )
    assert reader.types(sys.executable, "-c", code).split()[-1] == "4"


def checked(reader: Person, member: Member, path: Path, source: Path) -> str:
    """One line of what was found."""
    there = f"{member.repo}:{member.recipe[5:].upper()}" if member.file else member.repo
    for where in (path, there):  # on disk, and on the Hub by its headers
        about = reader.asks("inspect", where)
        assert 4 < about["bits_per_weight"] < 16.1
        assert [p for p in about["problems"] if p["level"] == "wrong"] == []
    said = reader.asks("verify", path, "--source", source, "--in", ",".join(member.runtimes), "--threads", 1)
    ran = {each["name"]: each for each in said["runtimes"]}
    assert {name: each["status"] for name, each in ran.items()} == dict.fromkeys(member.runtimes, "agrees")
    statement = reader.home / f"{member.recipe}.json"
    reader.quantwright("attest", path, "--source", source, "-o", statement, "--threads", 1)
    reader.quantwright("verify", path, "--attestation", statement)
    for program in PROGRAMS:
        out = reader.home / f"{member.recipe}-{program}"
        words = ("export", path, "--for", program, "-o", out)
        if program in member.exports:
            assert reader.asks(*words)["lost"] == []
            assert json.loads((out / "export.json").read_text())["recipe"] == member.recipe
        else:
            assert f"is {member.recipe}" in reader.fails(*words, ends=2)
            assert not out.exists()
    logits = ", ".join(f"{name} {each['kl']:.1e}" for name, each in ran.items())
    return f"{member.recipe}: {logits}; attested; exported for {', '.join(member.exports)}"


@pytest.mark.long
def test_a_family_is_published_pulled_checked_and_exported(
    hub: LoopbackHub, demo_checkpoint: Path, tmp_path: Path
) -> None:
    began = time.perf_counter()
    maker, reader = Person(hub, tmp_path / "maker"), Person(hub, tmp_path / "reader")
    published(hub, maker, demo_checkpoint)
    print(f"\nconverted and published, {time.perf_counter() - began:.0f} s")
    folders = {repo: pulled(hub, reader, repo) for repo in dict.fromkeys(member.repo for member in FAMILY)}
    for member in FAMILY:
        if member.opened:
            opened(reader, member)
        print(checked(reader, member, folders[member.repo] / member.file, demo_checkpoint))
