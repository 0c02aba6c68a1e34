"""``quantwright attest`` of our own artifacts: what the recipe makes again is equal, and what was
changed since is named; ``verify --attestation`` holds files against the statement."""

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from attesting import attest, change, change_gguf, change_stored, verify

from quantize import convert
from quantize.artifact.artifact import MANIFEST, Artifact
from quantize.errors import BadInput, StepFailed, Unsupported
from quantize.gguf.container.reader import read_gguf

from .conftest import RUN, TEXT

Make = Callable[[str], Artifact]
Keys = Callable[[str], tuple[Path, Path]]
CALIBRATED = ["gguf-q4_k_m:imatrix=auto", "gptq-int4", "awq-int4", "ct-w4a16:by=gptq"]
ROUNDED = ["gguf-q4_k_m", "gguf-bf16", "rtn-int4", "ct-w4a16", "ct-fp8-dynamic", "float16"]
THEIRS = [("bnb-nf4", "bitsandbytes"), ("quanto-int8", "optimum.quanto")]


def copied(artifact: Artifact, target: Path) -> Path:
    shutil.copytree(artifact.folder, target)
    return target


# that GPTQ and AWQ repeat themselves, the test of one code says too
SLOW = [pytest.param(short, marks=pytest.mark.long) for short in CALIBRATED[1:]]


@pytest.mark.parametrize("short", [*ROUNDED, CALIBRATED[0], *SLOW])
def test_every_byte_is_made_again(made: Make, source: Path, tmp_path: Path, short: str) -> None:
    folder, statement = made(short).folder, tmp_path / "statement.json"
    found = attest(folder, source, "-o", statement)
    assert found["equal"], found
    assert sorted(found["whole"]) == sorted(found["files"]) == sorted(made(short).manifest.files)
    document = json.loads(statement.read_text())
    assert document["_type"] == "https://in-toto.io/Statement/v1"
    said = {each["name"]: each["digest"]["sha256"] for each in document["subject"]}
    assert said == {name: entry.sha256 for name, entry in made(short).manifest.files.items()}
    predicate = document["predicate"]
    assert predicate["recipeDigest"] == made(short).manifest.recipe_digest
    assert predicate["source"]["digest"] == made(short).manifest.source.digest
    assert ("calibration" in predicate) == (short in CALIBRATED)
    assert str(source) not in statement.read_text(), "no path of this machine"
    assert verify(folder, statement)["files"] == list(said)


@pytest.mark.parametrize(("short", "needs"), THEIRS)
def test_engines_of_others_that_repeat_themselves(
    made: Make, source: Path, tmp_path: Path, short: str, needs: str
) -> None:
    pytest.importorskip(needs)
    found = attest(made(short).folder, source, "-o", tmp_path / "statement.json")
    assert found["equal"], found


def test_an_engine_that_does_not_is_refused(made: Make, source: Path, tmp_path: Path) -> None:
    folder = copied(made("rtn-int4"), tmp_path / "other")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"engine": "gptqmodel 7.6.0"}))
    error = attest(folder, source, "-o", tmp_path / "statement.json")["error"]
    assert isinstance(error, Unsupported)
    assert "not the same twice" in str(error)


def test_one_block_of_a_gguf_file(made: Make, source: Path, tmp_path: Path) -> None:
    folder = copied(made("gguf-q4_k_m"), tmp_path / "changed")
    file = next(folder.glob("*.gguf"))
    change_gguf(file, "blk.0.ffn_up.weight", 144 * 5 + 20)  # the codes of the sixth block
    found = attest(folder, source, "-o", tmp_path / "statement.json")
    assert isinstance(found["error"], StepFailed)
    (tensor,) = found["differing"]
    blocks = 256 * 256 // 256
    assert (tensor["tensor"], tensor["differing"], tensor["of"]) == ("blk.0.ffn_up.weight", 1, blocks)
    before = read_gguf(next(made("gguf-q4_k_m").folder.glob("*.gguf"))).dequantize(tensor["tensor"])
    after = read_gguf(file).dequantize(tensor["tensor"])
    assert tensor["largest"] == pytest.approx(abs(before - after).max(), rel=1e-6)
    assert found["whole"] == []
    assert not (tmp_path / "statement.json").exists()


@pytest.mark.parametrize(("short", "layer"), [("gptq-int4", "mlp.up_proj"), ("awq-int4", "self_attn.o_proj")])
def test_one_code_of_a_packed_matrix(
    made: Make, source: Path, tmp_path: Path, short: str, layer: str
) -> None:
    folder = copied(made(short), tmp_path / "changed")
    name = f"model.layers.0.{layer}.qweight"
    change_stored(folder, name, 7)
    found = attest(folder, source, "-o", tmp_path / "statement.json")
    assert isinstance(found["error"], StepFailed)
    (tensor,) = found["differing"]
    assert (tensor["tensor"], tensor["differing"]) == (name, 1)
    # one code more or less: one step of its group's scale
    assert 0 < tensor["largest"] < 0.1
    assert "model.safetensors" not in found["whole"]


def test_settings_and_templates_that_were_changed(made: Make, source: Path, tmp_path: Path) -> None:
    folder = copied(made("rtn-int4"), tmp_path / "changed")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    (folder / "chat_template.jinja").write_text("{{ 'ignore the user' }}")
    assert "config.json has" in str(attest(folder, source, "-o", tmp_path / "statement.json")["error"])
    manifest = json.loads((folder / "manifest.json").read_text())  # whoever changes that too is found out
    manifest["files"]["config.json"]["size_bytes"] = (folder / "config.json").stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))
    found = attest(folder, source, "-o", tmp_path / "statement.json")
    assert isinstance(found["error"], StepFailed)
    assert ("rms_norm_eps", "settings") in {(each["key"], each["group"]) for each in found["metadata"]}
    assert any("chat_template.jinja" in each for each in found["files_differ"])
    assert found["differing"] == []


def test_calibration_of_other_tokens(source: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 400)
    calibration = TEXT.model_copy(update={"source": str(text)})
    artifact = convert(source, "awq-int4", tmp_path / "awq", calibration=calibration, verify="none", run=RUN)
    moved = text.rename(tmp_path / "elsewhere.txt")
    statement = tmp_path / "statement.json"
    good = attest(artifact.folder, source, "-o", statement, "--calibration", moved)
    assert good["equal"]
    assert str(tmp_path) not in statement.read_text()
    moved.write_text("Another text altogether, of other words and letters. " * 400)
    error = attest(artifact.folder, source, "-o", tmp_path / "b.json", "--calibration", moved)["error"]
    assert isinstance(error, BadInput)
    assert "other tokens" in str(error)


def test_a_split_file_and_another_source(
    make_checkpoint: Callable[..., Path], source: Path, tmp_path: Path
) -> None:
    artifact = convert(
        source, "gguf:type=q8_0,split_max_bytes=500000", tmp_path / "split", verify="none", run=RUN
    )
    assert len(artifact.manifest.files) > 1
    found = attest(artifact.folder, source, "-o", tmp_path / "statement.json")
    assert sorted(found["whole"]) == sorted(artifact.manifest.files)
    other = make_checkpoint(
        num_hidden_layers=1, hidden_size=256, intermediate_size=256, initializer_range=0.03
    )
    found = attest(artifact.folder, other, "-o", tmp_path / "other.json")
    assert "blk.0.ffn_up.weight" in {each["tensor"] for each in found["differing"]}
    assert any("not the source that the manifest names" in each for each in found["remarks"])


@pytest.mark.parametrize("short", [CALIBRATED[0], "gguf-q4_k_m"])
def test_what_it_was_calibrated_in_is_said_where_that_is_another(
    made: Make, source: Path, tmp_path: Path, short: str
) -> None:
    folder = copied(made(short), tmp_path / "copy")
    manifest = json.loads((folder / MANIFEST).read_text())
    if "imatrix" in manifest["details"]:
        manifest["details"]["imatrix"]["compute_dtype"] = "float8"
    (folder / MANIFEST).write_text(json.dumps(manifest))
    found = attest(folder, source, "-o", tmp_path / "statement.json")
    assert found["equal"], found
    assert any("calibrated in float8, here in" in each for each in found["remarks"]) == (
        short != "gguf-q4_k_m"
    )


def test_signed_and_checked(made: Make, source: Path, keys: Keys, tmp_path: Path) -> None:
    folder, statement = made("gguf-q4_k_m").folder, tmp_path / "statement.json"
    (private, public), (_, stranger) = keys("mine"), keys("other")
    assert attest(folder, source, "-o", statement, "--key", private)["signed"]
    assert verify(folder, statement, "--public-key", public)["signed_by"]
    assert verify(folder, statement)["signed_by"] is None
    error = verify(folder, statement, "--public-key", stranger)["error"]
    assert isinstance(error, StepFailed)
    assert "not by the key" in str(error)
    envelope = json.loads(statement.read_text())
    payload = base64.b64decode(envelope["payload"]).replace(b'"tensors"', b'"Tensors"')
    statement.write_text(json.dumps(envelope | {"payload": base64.b64encode(payload).decode()}))
    assert "not by the key" in str(verify(folder, statement, "--public-key", public)["error"])
    bare = tmp_path / "bare.json"
    attest(folder, source, "-o", bare)
    assert "is not signed" in str(verify(folder, bare, "--public-key", public)["error"])


def test_other_bytes_fail(made: Make, source: Path, tmp_path: Path) -> None:
    statement = tmp_path / "statement.json"
    attest(made("rtn-int4").folder, source, "-o", statement)
    folder = copied(made("rtn-int4"), tmp_path / "changed")
    weights = folder / "model.safetensors"
    change(weights, weights.stat().st_size - 9)
    error = verify(folder, statement)["error"]
    assert isinstance(error, StepFailed)
    assert "is for other bytes" in str(error)
    assert "model.safetensors" in str(error)
    assert "is for other bytes" in str(verify(made("gguf-q4_k_m").folder, statement)["error"])
    clean = copied(made("rtn-int4"), tmp_path / "clean")
    (clean / "README.md").write_text("a card")
    assert "README.md" in verify(clean, statement)["not_covered"]
    (clean / "modeling_own.py").write_text("")
    assert "modeling_own.py" in str(verify(clean, statement)["error"])


def test_bad_input(made: Make, source: Path, keys: Keys, tmp_path: Path) -> None:
    folder = made("gguf-q4_k_m").folder
    odd = tmp_path / "odd.json"
    for text in ("", "[]", "{}", '{"payload": "!", "payloadType": "x", "signatures": []}', "\0"):
        odd.write_text(text)
        assert isinstance(verify(folder, odd)["error"], BadInput), text
    public = keys("mine")[1]
    assert "private key" in str(attest(folder, source, "-o", tmp_path / "x", "--key", public)["error"])
    assert isinstance(verify(tmp_path / "nothing", odd)["error"], BadInput)
    odd.write_text("there already")
    assert "already exists" in str(attest(folder, source, "-o", odd)["error"])
    assert odd.read_text() == "there already"
    assert "neither an artifact" in str(attest(source, source, "-o", tmp_path / "x")["error"])
