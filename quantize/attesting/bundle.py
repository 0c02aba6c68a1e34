"""A statement signed with sigstore, by whom an identity provider (OIDC) names in place of a key, and checked.

The key lives for one signature: Fulcio certifies it for the identity, Rekor's public log keeps when it
signed. All of it is done by the package ``sigstore``, which is installed apart.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quantize.attesting.envelope import PAYLOAD_TYPE, serialized
from quantize.errors import BadInput, StepFailed, Unsupported, first_line
from quantize.files import parse_json
from quantize.packages import importable, version

SUFFIX = ".sigstore.json"
OLDEST = 4  # whose API this is
_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle"


def need_sigstore() -> None:
    """Errors: Unsupported where it is not installed, or too old."""
    if not importable("sigstore"):
        raise Unsupported("sigstore is not installed; install with: pip install sigstore")
    found = version("sigstore") or ""
    major = found.partition(".")[0]
    if major.isdecimal() and int(major) < OLDEST:
        raise Unsupported(
            f"sigstore {found} is too old, {OLDEST} or later is needed; install with: pip install -U sigstore"
        )


def sign(statement: dict[str, Any]) -> dict[str, Any]:
    """The bundle around ``statement``, as JSON's values. The identity is the surroundings' (GitHub Actions,
    GitLab and the like), else a browser gives it. It and the statement's hash are public from then on.

    Errors: StepFailed where there is no identity, or sigstore's services do not sign (no network).
    """
    from sigstore.dsse import Statement
    from sigstore.oidc import IdentityToken, Issuer, detect_credential
    from sigstore.sign import SigningContext

    with _as_step("sigstore has not signed"):
        token = detect_credential()
        if token is None and not (sys.stdin and sys.stdin.isatty()):
            raise StepFailed(
                "sigstore has not signed: no identity in the environment (GitHub Actions, GitLab CI and the "
                "like give one), and no terminal from which a browser could give one"
            )
        trust = _trust()
        if token is not None:
            identity = IdentityToken(token)
        else:
            with contextlib.redirect_stdout(sys.stderr):  # where it asks for a code
                identity = Issuer(trust.signing_config.get_oidc_url()).identity_token()
        with SigningContext.from_trust_config(trust).signer(identity) as signer:
            bundle = signer.sign_dsse(Statement(serialized(statement))).to_json()
    return dict(json.loads(bundle))


def is_bundle(values: dict[str, Any]) -> bool:
    return str(values.get("mediaType")).startswith(_MEDIA_TYPE) or "verificationMaterial" in values


def verified(values: dict[str, Any], where: Path, identity: str | None, issuer: str | None) -> dict[str, Any]:
    """The statement in a bundle that ``identity`` signed, whom ``issuer`` vouches for.

    Errors: BadInput where the two are not given, or it is no bundle; Unsupported as of ``need_sigstore``;
    StepFailed where it is not theirs or was changed, or the keys of sigstore's services cannot be fetched.
    """
    missing = [name for name, given in (("--identity", identity), ("--issuer", issuer)) if not given]
    if missing:
        raise BadInput(
            f"{where}: a sigstore bundle: give {' and '.join(missing)}, who must have signed it and which "
            "provider says so; without them anybody's signature would do"
        )
    need_sigstore()
    from sigstore.models import Bundle
    from sigstore.verify import Verifier
    from sigstore.verify.policy import Identity

    try:
        bundle = Bundle.from_json(json.dumps(values))
    except Exception as error:  # of cryptography, pydantic and sigstore, by what is wrong in it
        raise BadInput(f"{where}: not a sigstore bundle ({_said(error)}); fetch it again") from None
    with _as_step(f"{where}: cannot be checked: sigstore's trusted keys cannot be had"):
        verifier = Verifier(trusted_root=_trust().trusted_root)
    with _as_step(f"{where}: was changed, or is not signed by {identity} (issuer {issuer})"):
        kind, payload = verifier.verify_dsse(bundle, Identity(identity=str(identity), issuer=issuer))
    if kind != PAYLOAD_TYPE:
        raise BadInput(f"{where}: holds {kind!r}; expected {PAYLOAD_TYPE}")
    statement = parse_json(payload, f"{where}: payload")
    if not isinstance(statement, dict):
        raise BadInput(f"{where}: its payload is not a JSON object")
    return statement


def _trust() -> Any:
    """Addresses and keys of sigstore's services, refreshed; those of the last time, or those that came with
    the package, where HF_HUB_OFFLINE is set (sigstore's log says so)."""
    from huggingface_hub import constants
    from sigstore.models import ClientTrustConfig

    return ClientTrustConfig.production(offline=constants.HF_HUB_OFFLINE)


@contextlib.contextmanager
def _as_step(what: str) -> Iterator[None]:
    """Around calls of sigstore only: its clients' errors have no common class."""
    try:
        yield
    except StepFailed:
        raise
    except Exception as error:
        raise StepFailed(f"{what} ({_said(error)})") from None


def _said(error: Exception) -> str:
    """With what it comes from: some say nothing themselves."""
    said = [first_line(each, 200) for each in (error, error.__cause__) if each is not None]
    return ": ".join(dict.fromkeys(said))
