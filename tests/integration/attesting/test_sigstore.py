"""``attest --sigstore`` and ``verify --identity --issuer``: against a sigstore of our own on the loopback
where the package is installed, else what is said where it is not."""

import base64
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attesting import attest, change, verify

from quantize.artifact.artifact import Artifact
from quantize.errors import BadInput, StepFailed, Unsupported
from quantize.packages import importable

Make = Callable[[str], Artifact]
Keys = Callable[[str], tuple[Path, Path]]
ME, ISSUER = "me@example.com", "https://issuer.example"
BY_ME = ("--identity", ME, "--issuer", ISSUER)
installed = pytest.mark.skipif(not importable("sigstore"), reason="sigstore is not installed")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Of the right outer form, so that it is taken for one."""
    file = tmp_path / "made-up.sigstore.json"
    kind = "application/vnd.dev.sigstore.bundle.v0.3+json"
    file.write_text(json.dumps({"mediaType": kind, "verificationMaterial": {}, "dsseEnvelope": {}}))
    return file


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No identity in the environment, none of the user's folders, and a network that leads nowhere."""
    for name in ("GITHUB_ACTIONS", "GITLAB_CI", "BUILDKITE", "CIRCLECI", "GOOGLE_SERVICE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # discard: nobody listens
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


@pytest.fixture
def own(alone: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The package trusts our own sigstore, and this is a job of GitLab's whose token says ``ME``."""
    from huggingface_hub import constants

    from .own_sigstore import OwnSigstore, token

    sigstore = OwnSigstore()
    sigstore.trusted_by(tmp_path / "XDG_CACHE_HOME")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("GITLAB_CI", "true")
    monkeypatch.setenv("SIGSTORE_ID_TOKEN", token(ME))
    yield
    sigstore.stop()


def test_not_installed(
    made: Make, source: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sigstore", None)
    folder, out = made("rtn-int4").folder, tmp_path / "out.sigstore.json"
    # before any work: the source is not even looked for
    for error in (
        attest(folder, tmp_path / "no source", "-o", out, "--sigstore")["error"],
        verify(folder, bundle, *BY_ME)["error"],
    ):
        assert isinstance(error, Unsupported)
        assert "pip install sigstore" in str(error)
        assert "\n" not in str(error)
    assert not list(tmp_path.glob("out*"))


def test_what_does_not_go_together(
    made: Make, keys: Keys, bundle: Path, source: Path, tmp_path: Path
) -> None:
    folder, (private, public) = made("rtn-int4").folder, keys("mine")
    error = attest(folder, source, "--key", private, "--sigstore")["error"]
    assert isinstance(error, BadInput)
    assert "--sigstore" in str(error)
    bare = tmp_path / "bare.intoto.json"
    attest(folder, source, "-o", bare)
    for file, options, words in (
        (bundle, (), "give --identity and --issuer"),
        (bundle, ("--identity", ME), "give --issuer,"),
        (bundle, ("--issuer", ISSUER), "give --identity,"),
        (bundle, ("--identity", "", "--issuer", ISSUER), "give --identity,"),
        (bundle, ("--public-key", public), "is a sigstore bundle"),
        (bare, BY_ME, "is not a sigstore bundle"),
    ):
        error = verify(folder, file, *options)["error"]
        assert isinstance(error, BadInput), options
        assert words in str(error), options


@installed
def test_signed_by_an_identity(own: None, made: Make, source: Path, tmp_path: Path) -> None:
    folder, signed = made("rtn-int4").folder, tmp_path / "rtn.sigstore.json"
    found = attest(folder, source, "-o", signed, "--sigstore")
    assert "error" not in found
    assert found["signed"]
    assert found["statement"] == str(signed)
    assert not list(tmp_path.glob("*.intoto.json"))
    checked = verify(folder, signed, *BY_ME)
    assert (checked["signed_by"], checked["issuer"]) == (ME, ISSUER)
    assert sorted(checked["files"]) == sorted(made("rtn-int4").manifest.files)
    for options in (
        ("--identity", "you@example.com", "--issuer", ISSUER),
        (*BY_ME[:3], "https://else.example"),
    ):
        error = verify(folder, signed, *options)["error"]
        assert isinstance(error, StepFailed)
        assert "is not signed by" in str(error)
    other = tmp_path / "other.safetensors"
    other.write_bytes((folder / "model.safetensors").read_bytes())
    change(other, 100)
    error = verify(other, signed, *BY_ME)["error"]
    assert isinstance(error, StepFailed)
    assert "is for other bytes" in str(error)


@installed
def test_a_bundle_that_was_changed(own: None, made: Make, source: Path, tmp_path: Path) -> None:
    folder, signed = made("rtn-int4").folder, tmp_path / "rtn.sigstore.json"
    attest(folder, source, "-o", signed, "--sigstore")
    good = json.loads(signed.read_text())
    assert "error" not in verify(folder, signed, *BY_ME)

    def error(values: dict) -> Exception:
        signed.write_text(json.dumps(values))
        found = verify(folder, signed, *BY_ME)["error"]
        assert "\n" not in str(found)
        return found

    def changed(place: str, text: bytes) -> dict:
        return good | {"dsseEnvelope": good["dsseEnvelope"] | {place: base64.b64encode(text).decode()}}

    payload = base64.b64decode(good["dsseEnvelope"]["payload"])
    assert isinstance(error(changed("payload", payload.replace(b'"tensors"', b'"Tensors"'))), StepFailed)
    assert isinstance(error(good | {"dsseEnvelope": good["dsseEnvelope"] | {"payloadType": "x"}}), StepFailed)
    material = good["verificationMaterial"]
    (entry,) = material["tlogEntries"]
    later = entry | {"integratedTime": str(int(entry["integratedTime"]) + 60)}
    assert isinstance(error(good | {"verificationMaterial": material | {"tlogEntries": [later]}}), StepFailed)
    for broken in ({}, material | {"tlogEntries": []}, material | {"certificate": {"rawBytes": "AAAA"}}):
        assert isinstance(error(good | {"verificationMaterial": broken}), BadInput)


@installed
def test_a_bundle_of_another_sigstore(
    own: None, made: Make, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the keys of the public one, which came with the package, ours is nobody."""
    signed = tmp_path / "rtn.sigstore.json"
    attest(made("rtn-int4").folder, source, "-o", signed, "--sigstore")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new"))
    error = verify(made("rtn-int4").folder, signed, *BY_ME)["error"]
    assert isinstance(error, StepFailed)
    assert "is not signed by" in str(error)


@installed
@pytest.mark.parametrize("identity", [False, True], ids=["no identity", "no network"])
def test_the_statement_is_kept(
    alone: None, made: Make, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, identity: bool
) -> None:
    from .own_sigstore import token

    if identity:
        monkeypatch.setenv("GITLAB_CI", "true")
        monkeypatch.setenv("SIGSTORE_ID_TOKEN", token(ME))
    folder, out, kept = (
        made("rtn-int4").folder,
        tmp_path / "rtn.sigstore.json",
        tmp_path / "rtn.intoto.json",
    )
    found = attest(folder, source, "-o", out, "--sigstore")
    assert isinstance(found["error"], StepFailed)
    assert f"is kept, not signed, in {kept}" in str(found["error"])
    assert ("no identity" in str(found["error"])) != identity
    assert (found["equal"], found["signed"], found["statement"]) == (True, False, str(kept))
    assert not out.exists()
    assert not verify(folder, kept)["signed"]
    again = attest(folder, source, "-o", out, "--sigstore")["error"]
    assert "already exists" in str(again), "what was kept is not overwritten"


@installed
def test_keys_that_cannot_be_fetched(
    own: None, made: Make, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    signed = tmp_path / "rtn.sigstore.json"
    attest(made("rtn-int4").folder, source, "-o", signed, "--sigstore")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    error = verify(made("rtn-int4").folder, signed, *BY_ME)["error"]
    assert isinstance(error, StepFailed)
    assert "trusted keys cannot be had" in str(error)
