"""What a manifest says is held against the bytes before anything is measured, and what others claim is told
as their claim."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from evals.subjects import resolve
from jobs.models import OpenModel
from jobs.spec import Model
from jobs.steps.convert import ConvertStep
from quantize.artifact.artifact import Artifact
from quantize.artifact.attestation import verified_here
from quantize.conversion import convert
from quantize.errors import BadInput
from quantize.file_hashes import FileHashes, user_hashes
from quantize.methods.registry import parse_recipe
from quantize.sources.opening import open_checkpoint
from reports.card import CardOptions
from reports.publish import prepare


@pytest.fixture(scope="module")
def made(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 folder and a GGUF, verified by their tensors, in a home of the test's own."""
    folder = tmp_path_factory.mktemp("made")
    source = make_checkpoint(num_hidden_layers=1, hidden_size=64, intermediate_size=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(folder / "data"))
        convert(source, "float32", folder / "float32", verify="tensors")
        convert(source, "gguf-q8_0", folder / "gguf", verify="none")
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(made / "data"))
    for name in ("float32", "gguf"):
        shutil.copytree(made / name, tmp_path / name)
    return tmp_path


def flip(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"damaged!")


def test_a_damaged_artifact_is_refused_by_name(copy: Path) -> None:
    weights, gguf = copy / "float32" / "model.safetensors", next((copy / "gguf").glob("*.gguf"))
    typed = (copy / "float32", copy / "gguf", gguf)
    assert all(resolve(path).artifact for path in typed)
    flip(weights)
    flip(gguf)
    for path, damaged in zip(typed, (weights, gguf, gguf), strict=True):
        with pytest.raises(BadInput, match=f"{damaged.parent}: {damaged.name} does not match its sha256"):
            resolve(path)


@pytest.mark.parametrize(
    "name", ["a.gguf", "model-00001-of-00001.safetensors", "chat_template.jinja", "adapter_config.json"]
)
def test_a_file_beside_the_artifact_that_would_be_read_is_refused(name: str, copy: Path) -> None:
    (copy / "float32" / "notes.md").write_text("mine")
    assert resolve(copy / "float32").artifact
    (copy / "float32" / name).write_bytes(b"GGUF")
    with pytest.raises(BadInput, match=f"{name} does not belong to the artifact"):
        resolve(copy / "float32")


def test_a_flipped_artifact_is_not_already_done(copy: Path) -> None:
    model = OpenModel(Model(source="m"), "m", "m", None)
    step = ConvertStep(
        arguments=(), output=Path("float32"), name="float32", model=model, recipe=parse_recipe("float32")
    )
    digest = Artifact.load(copy / "float32").digest
    assert step.digest(copy) == digest
    flip(copy / "float32" / "model.safetensors")
    assert step.digest(copy) is None


def test_hashes_are_remembered_until_a_file_changes(tmp_path: Path) -> None:
    path, memory = tmp_path / "file", tmp_path / "hashes.json"
    path.write_bytes(b"one")
    first = FileHashes(memory).sha256(path)
    assert not memory.exists()  # it may change again within the same tick of the clock
    time.sleep(2.1)
    assert FileHashes(memory).sha256(path) == first
    assert first in memory.read_text()
    status = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert FileHashes(memory).sha256(path) != first
    memory.write_text('{"a": "[["')
    assert FileHashes(memory).sha256(path) != first


def test_a_source_that_changes_under_its_old_times_has_another_digest(copy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    shutil.copytree(copy / "float32", folder)
    weights = folder / "model.safetensors"
    time.sleep(2.1)
    source = open_checkpoint(folder)
    first = source.digest_now()
    memory = user_hashes().memory
    assert memory
    known = json.loads(memory.read_text())
    assert known[str(weights)]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    status = weights.stat()
    flip(weights)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert source.digest_now() != first
    assert open_checkpoint(folder).digest == source.digest_now()


NAMES = ["../../.bashrc", "/etc/passwd", "a/../../b", "..", "a\\b"]


@pytest.mark.parametrize("name", NAMES)
def test_names_in_a_manifest_stay_in_its_folder(name: str, copy: Path) -> None:
    path = copy / "gguf" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = next(iter(manifest["files"].values()))
    path.write_text(json.dumps(manifest))
    for read in (Artifact.load, resolve):
        with pytest.raises(BadInput, match="plain relative path inside the folder"):
            read(copy / "gguf")
    with pytest.raises(BadInput, match="plain relative path inside the folder"):
        prepare([copy / "gguf"], [], CardOptions("me/x", name="Small"), allow_unverified=True)


def test_a_file_of_an_artifact_that_is_a_link_out_is_refused(copy: Path) -> None:
    weights = copy / "float32" / "model.safetensors"
    weights.rename(copy / "elsewhere")
    weights.symlink_to(copy / "elsewhere")
    with pytest.raises(BadInput, match=r"model.safetensors is a link to .*elsewhere, outside the folder"):
        Artifact.load(copy / "float32")


def card_of(folder: Path, said: list[str]) -> str:
    content = prepare(
        [folder], [], CardOptions("me/x", name="Small"), allow_unverified=True, say=said.append
    ).files["README.md"]
    assert isinstance(content, bytes)
    return content.decode()


def test_whose_word_a_verification_is(copy: Path) -> None:
    said: list[str] = []
    assert verified_here(Artifact.load(copy / "float32"))
    assert "claimed" not in card_of(copy / "float32", said) + " ".join(said)
    path = copy / "float32" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["verification"]["level"] = "full"
    path.write_text(json.dumps(manifest))
    assert "as claimed by the artifact's maker" in card_of(copy / "float32", said)
    assert "not checked here" in " ".join(said)
    unverified = copy / "gguf" / "manifest.json"
    manifest = json.loads(unverified.read_text())
    manifest["verification"] = {"level": "full", "checks": []}
    unverified.write_text(json.dumps(manifest))
    assert not verified_here(Artifact.load(copy / "gguf"))
    assert "as claimed by the artifact's maker" in card_of(copy / "gguf", said)


def test_another_users_word_is_not_ones_own(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "other"))
    assert not verified_here(Artifact.load(copy / "float32"))
