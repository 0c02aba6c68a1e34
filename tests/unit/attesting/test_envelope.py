"""DSSE envelopes: against the protocol's own example, and what they refuse."""

import base64
import json
from pathlib import Path

import pytest

from quantize.attesting.envelope import (
    _to_be_signed,
    read_envelope,
    read_private_key,
    read_public_key,
    serialized,
    signed,
    signer,
)
from quantize.errors import BadInput

pytest.importorskip("cryptography", reason="cryptography is not installed (extra: attest)")
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)


def test_what_is_signed_is_the_protocols_example() -> None:
    """protocol.md of DSSE: PAE of this type and body."""
    expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert _to_be_signed("http://example.com/HelloWorld", b"hello world") == expected


def test_a_signature_is_of_type_and_payload(tmp_path: Path) -> None:
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    file = tmp_path / "envelope.json"
    document = signed({"b": 1, "a": "é"}, key)
    file.write_text(json.dumps(document | {"unknown": 1}))
    statement, envelope = read_envelope(file)
    assert statement == {"a": "é", "b": 1}
    assert base64.b64decode(document["payload"]) == serialized(statement)
    assert envelope is not None
    assert signer(envelope, key.public_key()) == document["signatures"][0]["keyid"]
    assert signer(envelope, other.public_key()) is None
    assert signer(envelope.model_copy(update={"payload_type": "text/plain"}), key.public_key()) is None


@pytest.mark.parametrize(
    ("kind", "words"),
    [("password", "has a password"), ("rsa", "not an ed25519 key"), ("text", "not a private key")],
)
def test_other_keys_are_refused(tmp_path: Path, kind: str, words: str) -> None:
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

    file, form = tmp_path / "key.pem", (Encoding.PEM, PrivateFormat.PKCS8)
    if kind == "password":
        secret = Ed25519PrivateKey.generate().private_bytes(*form, BestAvailableEncryption(b"x"))
    elif kind == "rsa":
        secret = generate_private_key(SECP256R1()).private_bytes(*form, NoEncryption())
    else:
        secret = b"no key"
    file.write_bytes(secret)
    with pytest.raises(BadInput, match=words):
        read_private_key(file)
    with pytest.raises(BadInput, match="not a public key"):
        read_public_key(file)
