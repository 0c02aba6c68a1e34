"""A sigstore of our own on the loopback: an authority that certifies keys for the identity in a token
(Fulcio), its certificate log, and a log of signatures with one entry (Rekor). What they sign is what the real
ones do.

Source: RFC 6962, sections 2.1 and 3.2 (certificate log, Merkle tree); sigstore's bundle and trusted root,
version 0.3 and 0.1; Rekor's signed entry timestamp (client specification of sigstore, section 4).
"""

import base64
import datetime
import hashlib
import json
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

ISSUER = "https://issuer.example"
ISSUER_EXTENSION = ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
SCT_EXTENSION = ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
BEGAN = "2020-01-01T00:00:00Z"
LOG = "log.example"


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def der(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def key_id(key: ec.EllipticCurvePrivateKey) -> bytes:
    return hashlib.sha256(der(key)).digest()


def signature(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


def canonical(values: dict[str, Any]) -> bytes:
    """RFC 8785, of texts and integers."""
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def token(identity: str) -> str:
    """Nobody but Fulcio checks who signed it."""
    now = int(time.time())
    claims = {"aud": "sigstore", "iss": ISSUER, "sub": identity, "iat": now, "exp": now + 600}
    parts = [{"alg": "RS256", "typ": "JWT"}, claims]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*encoded, "AAAA"])


def der_octets(data: bytes) -> bytes:
    """An OCTET STRING of fewer than 128 bytes, or of fewer than 256."""
    return b"\x04" + (b"" if len(data) < 128 else b"\x81") + bytes([len(data)]) + data


class OwnSigstore:
    def __init__(self) -> None:
        self.authority, self.certificate_log, self.log = (
            ec.generate_private_key(ec.SECP256R1()) for _ in range(3)
        )
        self.root = self._root()
        answers = {"/api/v2/signingCert": self._certify, "/api/v1/log/entries": self._log_entry}

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                said = json.dumps(answers[self.path](body, self.headers.get("Authorization", ""))).encode()
                self.send_response(201)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def trusted_by(self, cache: Path) -> None:
        """``cache``: $XDG_CACHE_HOME, where the package keeps what it fetched of the public sigstore."""
        folder = cache / "sigstore-python" / "tuf" / "https%3A%2F%2Ftuf-repo-cdn.sigstore.dev"
        folder.mkdir(parents=True)
        (folder / "trusted_root.json").write_text(json.dumps(self._trusted_root()))
        (folder / "signing_config.v0.2.json").write_text(json.dumps(self._signing_config()))

    def _trusted_root(self) -> dict[str, Any]:
        def log(key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
            public = {"rawBytes": text(der(key)), "keyDetails": "PKIX_ECDSA_P256_SHA_256"}
            return {
                "baseUrl": self.url, "hashAlgorithm": "SHA2_256", "logId": {"keyId": text(key_id(key))},
                "publicKey": public | {"validFor": {"start": BEGAN}},
            }  # fmt: skip

        chain = {"certificates": [{"rawBytes": text(self.root.public_bytes(Encoding.DER))}]}
        authority = {"uri": self.url, "certChain": chain, "validFor": {"start": BEGAN}}
        return {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [log(self.log)], "ctlogs": [log(self.certificate_log)], "timestampAuthorities": [],
            "certificateAuthorities": [
                authority | {"subject": {"organization": "own", "commonName": "own"}}
            ],
        }  # fmt: skip

    def _signing_config(self) -> dict[str, Any]:
        service = {"url": self.url, "majorApiVersion": 1, "validFor": {"start": BEGAN}, "operator": "own"}
        return {
            "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
            "caUrls": [service], "oidcUrls": [service], "rekorTlogUrls": [service], "tsaUrls": [],
            "rekorTlogConfig": {"selector": "ANY"}, "tsaConfig": {"selector": "ANY"},
        }  # fmt: skip

    def _root(self) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "own")])
        public = self.authority.public_key()
        usage = dict.fromkeys(
            ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
             "key_agreement", "encipher_only", "decipher_only"), False
        )  # fmt: skip
        return (
            x509.CertificateBuilder(name, name, public, x509.random_serial_number())
            .not_valid_before(datetime.datetime(2020, 1, 1))
            .not_valid_after(datetime.datetime(2100, 1, 1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.KeyUsage(**usage, key_cert_sign=True, crl_sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(self.authority, hashes.SHA256())
        )

    def _certify(self, body: dict[str, Any], authorization: str) -> dict[str, Any]:
        """Fulcio: a certificate of ten minutes for the key of the request and the token's identity."""
        claims = authorization.removeprefix("Bearer ").split(".")[1]
        identity = json.loads(base64.urlsafe_b64decode(claims + "=="))["sub"]
        request = x509.load_pem_x509_csr(base64.b64decode(body["certificateSigningRequest"]))
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign",
             "crl_sign", "encipher_only", "decipher_only"), False
        )  # fmt: skip
        now = datetime.datetime.now(datetime.timezone.utc)
        names = x509.SubjectAlternativeName([x509.RFC822Name(identity)])
        issuer = x509.UnrecognizedExtension(ISSUER_EXTENSION, ISSUER.encode())
        of = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.authority.public_key())
        unlogged = (
            x509.CertificateBuilder(
                self.root.subject, x509.Name([]), request.public_key(), x509.random_serial_number()
            )
            .not_valid_before(now - datetime.timedelta(seconds=5))
            .not_valid_after(now + datetime.timedelta(minutes=10))
            .add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(of, critical=False)
            .add_extension(names, critical=True)
            .add_extension(issuer, critical=False)
        )
        entry = unlogged.sign(self.authority, hashes.SHA256()).tbs_certificate_bytes
        stamped = x509.UnrecognizedExtension(SCT_EXTENSION, self._timestamp(entry))
        leaf = unlogged.add_extension(stamped, critical=False).sign(self.authority, hashes.SHA256())
        chain = [each.public_bytes(Encoding.PEM).decode() for each in (leaf, self.root)]
        return {"signedCertificateEmbeddedSct": {"chain": {"certificates": chain}}}

    def _timestamp(self, entry: bytes) -> bytes:
        """The list of one signed certificate timestamp, RFC 6962, 3.2 and 3.3."""
        moment = int(time.time() * 1000)
        size = struct.pack("!I", len(entry))[1:]
        signs = struct.pack("!BBQH", 0, 0, moment, 1) + key_id(self.authority) + size + entry + b"\0\0"
        proof = signature(self.certificate_log, signs)
        sha256_ecdsa = b"\x04\x03"
        stamp = b"\0" + key_id(self.certificate_log) + struct.pack("!QH", moment, 0) + sha256_ecdsa
        stamp += struct.pack("!H", len(proof)) + proof
        return der_octets(struct.pack("!HH", len(stamp) + 2, len(stamp)) + stamp)

    def _log_entry(self, body: dict[str, Any], _: str) -> dict[str, Any]:
        """Rekor: a log with this one entry, whose root is therefore its hash."""
        proposed = body["spec"]["proposedContent"]
        envelope = json.loads(proposed["envelope"])

        def digest(data: bytes) -> dict[str, str]:
            return {"algorithm": "sha256", "value": hashlib.sha256(data).hexdigest()}

        content = {
            "envelopeHash": digest(proposed["envelope"].encode()),
            "payloadHash": digest(base64.b64decode(envelope["payload"])),
            "signatures": [
                {"signature": each["sig"], "verifier": proposed["verifiers"][0]}
                for each in envelope["signatures"]
            ],
        }
        entry = canonical({"apiVersion": "0.0.1", "kind": "dsse", "spec": content})
        root = hashlib.sha256(b"\0" + entry).digest()
        note = f"{LOG}\n1\n{text(root)}\n"
        proof = text(key_id(self.log)[:4] + signature(self.log, note.encode()))
        said = {
            "body": text(entry), "integratedTime": int(time.time()), "logID": key_id(self.log).hex(),
            "logIndex": 0,
        }  # fmt: skip
        inclusion = {
            "logIndex": 0, "rootHash": root.hex(), "treeSize": 1, "hashes": [],
            "checkpoint": f"{note}\n\N{EM DASH} {LOG} {proof}\n",
        }  # fmt: skip
        promise = text(signature(self.log, canonical(said)))
        return {
            "one": said | {"verification": {"inclusionProof": inclusion, "signedEntryTimestamp": promise}}
        }
