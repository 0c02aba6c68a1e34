"""A small model, what recipes make of it, and a key."""

from collections.abc import Callable
from pathlib import Path

import pytest

from quantize import convert
from quantize.artifact.artifact import Artifact
from quantize.recipe import CalibrationOptions, RunOptions

RUN = RunOptions(device="cpu", threads=1, progress=False)
TEXT = CalibrationOptions(source="stdlib", tokens=512, sequence_length=128)


@pytest.fixture(scope="module")
def source(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(num_hidden_layers=1, hidden_size=256, intermediate_size=256, vocab_size=4096)


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Artifact]:
    folder, known = tmp_path_factory.mktemp("made"), dict[str, Artifact]()

    def make(short: str) -> Artifact:
        if short not in known:
            out = folder / short.replace(":", "-")
            known[short] = convert(source, short, out, calibration=TEXT, verify="none", run=RUN)
        return known[short]

    return make


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """By name: (private, public) ed25519 keys in PEM, as openssl writes them."""
    pytest.importorskip("cryptography", reason="cryptography is not installed (extra: attest)")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    folder = tmp_path_factory.mktemp("keys")

    def pair(name: str) -> tuple[Path, Path]:
        private, public = folder / f"{name}.pem", folder / f"{name}.pub"
        if not private.exists():
            key = Ed25519PrivateKey.generate()
            private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        return private, public

    return pair
