"""A statement in a DSSE envelope, signed by an ed25519 key and checked.

What is signed is the payload with its type and both lengths before them (PAE), so that no reader takes it for
something else. Source: the DSSE protocol, version 1.0.2 (secure-systems-lab/dsse, protocol.md).
"""

import base64
import binascii
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quantize.errors import BadInput, Unsupported
from quantize.files import parse_json, read_bytes
from quantize.packages import importable, install_command

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
MAX_KEY_BYTES = 1 << 16
MAX_STATEMENT_BYTES = 1 << 26
MAKE_KEY = "`openssl genpkey -algorithm ed25519 -out key.pem` makes one"


class Signature(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    sig: str
    keyid: str = ""


class Envelope(BaseModel):
    """Unknown members are ignored, as the protocol asks."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    payload: str
    payload_type: str = Field(alias="payloadType")
    signatures: tuple[Signature, ...] = Field(min_length=1)


def signed(statement: dict[str, Any], key: "Ed25519PrivateKey") -> dict[str, Any]:
    """The envelope around ``statement``, as JSON's values."""
    payload = serialized(statement)
    signature = key.sign(_to_be_signed(PAYLOAD_TYPE, payload))
    return {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": key_id(key.public_key()), "sig": base64.b64encode(signature).decode()}],
    }


def serialized(statement: dict[str, Any]) -> bytes:
    return json.dumps(statement, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def read_envelope(path: Path) -> tuple[dict[str, Any], Envelope | None]:
    """The statement in ``path`` and the envelope around it; None where it stands there bare.

    Errors: BadInput where it is neither.
    """
    found = parse_json(read_bytes(path, MAX_STATEMENT_BYTES), str(path))
    if not isinstance(found, dict):
        raise BadInput(f"{path}: not an attestation (expected a JSON object)")
    if "payload" not in found:
        return found, None
    try:
        envelope = Envelope.model_validate(found)
        payload = base64.b64decode(envelope.payload, validate=True)
    except (ValidationError, binascii.Error):
        raise BadInput(f"{path}: not a DSSE envelope; fetch it again") from None
    if envelope.payload_type != PAYLOAD_TYPE:
        raise BadInput(f"{path}: holds {envelope.payload_type!r}; expected {PAYLOAD_TYPE}")
    statement = parse_json(payload, f"{path}: payload")
    if not isinstance(statement, dict):
        raise BadInput(f"{path}: its payload is not a JSON object")
    return statement, envelope


def signer(envelope: Envelope, key: "Ed25519PublicKey") -> str | None:
    """The id of ``key`` where one of the signatures is by it, else None."""
    from cryptography.exceptions import InvalidSignature

    payload = base64.b64decode(envelope.payload)
    for each in envelope.signatures:
        try:
            key.verify(
                base64.b64decode(each.sig, validate=True), _to_be_signed(envelope.payload_type, payload)
            )
        except (InvalidSignature, binascii.Error, ValueError):
            continue
        return key_id(key)
    return None


def read_private_key(path: Path) -> "Ed25519PrivateKey":
    """Errors: BadInput where it is no ed25519 private key in PEM without a password; Unsupported where the
    library is not installed."""
    _need_library()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(read_bytes(path, MAX_KEY_BYTES), password=None)
    except TypeError:
        raise BadInput(f"{path}: the key has a password; write it without one for this") from None
    except (ValueError, UnsupportedAlgorithm):
        raise BadInput(f"{path}: not a private key in PEM; {MAKE_KEY}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise BadInput(f"{path}: not an ed25519 key; {MAKE_KEY}")
    return key


def read_public_key(path: Path) -> "Ed25519PublicKey":
    """Errors: as ``read_private_key``."""
    _need_library()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    advice = "`openssl pkey -in key.pem -pubout -out key.pub` writes it"
    try:
        key = load_pem_public_key(read_bytes(path, MAX_KEY_BYTES))
    except (ValueError, UnsupportedAlgorithm):
        raise BadInput(f"{path}: not a public key in PEM; {advice}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise BadInput(f"{path}: not an ed25519 key; {advice}")
    return key


def key_id(key: "Ed25519PublicKey") -> str:
    """sha256 of the key as SubjectPublicKeyInfo in DER, in hex."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _to_be_signed(kind: str, payload: bytes) -> bytes:
    return b"DSSEv1 %d %s %d %s" % (len(kind.encode()), kind.encode(), len(payload), payload)


def _need_library() -> None:
    if not importable("cryptography"):
        raise Unsupported(
            "signatures need the library cryptography; install with: "
            f"{install_command('attest', ['cryptography'])}"
        )
