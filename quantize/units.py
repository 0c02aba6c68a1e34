"""Sizes and times as a person types and reads them."""

from quantize.errors import BadInput

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": KIB,
    "mi": MIB,
    "gi": GIB,
    "ti": 1 << 40,
}


def parse_size(text: str) -> int:
    """``8GiB``, ``500MB``, ``1g`` or plain bytes -> bytes. Errors: BadInput."""
    number = text.strip().lower().removesuffix("b")
    unit = number.lstrip("0123456789.").strip()
    try:
        return int(float(number.removesuffix(unit).strip()) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        raise BadInput(f"size {text!r}: expected something like 8GiB, 500MB or a number of bytes") from None


def spell_size(size_bytes: float) -> str:
    """Bytes in decimal units, as file sizes and the Hub write them: ``1.50 kB``, ``502.0 MB``."""
    value = size_bytes
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 999.5 or unit == "TB":
            return f"{value:.0f} B" if unit == "B" else f"{value:.{2 if abs(value) < 99.95 else 1}f} {unit}"
        value /= 1000
    raise AssertionError


def spell_gib(size_bytes: float) -> str:
    """Bytes in the unit that limits are given in (``--memory 8GiB``)."""
    return f"{size_bytes / GIB:.2f} GiB"


def spell_time(seconds: float) -> str:
    """``7.2 s``, ``48 s``, ``3.5 min``, ``2.0 h``."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    if seconds >= 90:
        return f"{seconds / 60:.1f} min"
    return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
