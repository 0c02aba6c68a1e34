"""What leaves the program as text: one line stays one line, no stranger's string moves the cursor, no secret is shown."""

import os
import re

MAX_CHARACTERS = 4000
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MODELSCOPE_API_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
_SIGNED = re.compile(r"(?i)([?&][\w-]*(?:token|secret|password|signature|sig|credential|api_?key)=)[^&#\s]+")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}")
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}|\bapi_org_[A-Za-z0-9]{16,}")
# C0 and C1 controls, line and paragraph separators, marks that turn the direction of writing, halves of surrogate pairs
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def redact(text: str) -> str:
    """``text`` without tokens, passwords in addresses and signatures. Whatever is printed or written goes through here."""
    for name in SECRETS:
        value = os.environ.get(name, "").strip()
        if len(value) >= 8:
            text = text.replace(value, "***")
    text = _HUB_TOKEN.sub("***", _BEARER.sub(r"\1 ***", text))
    return _SIGNED.sub(r"\1***", _CREDENTIALS.sub("***@", text))


def printable(text: object, limit: int = MAX_CHARACTERS) -> str:
    """One line of at most ``limit`` characters: line breaks become spaces, other controls their escapes; secrets are redacted."""
    one = redact(str(text)).replace("\r\n", " ").replace("\n", " ").replace("\r", " ").replace("\t", " ")
    one = _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode("ascii"), one)
    return one if len(one) <= limit else one[: limit - 1] + "…"
