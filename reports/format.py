"""Numbers as a person reads them: units, digits that mean something, intervals."""

import math
from collections.abc import Sequence

from quantize.units import spell_size

#: metric -> (heading, unit, how it is written, direction: -1 smaller is better, 1 larger is better, 0
#: neither)
METRICS: dict[str, tuple[str, str, str, int]] = {
    "size_bytes": ("Size", "", "bytes", -1),
    "bits_per_weight": ("Bits/weight", "", "fixed2", -1),
    "perplexity": ("Perplexity", "", "significant", -1),
    "word_perplexity": ("Word perplexity", "", "significant", -1),
    "byte_perplexity": ("Byte perplexity", "", "significant", -1),
    "bits_per_byte": ("Bits/byte", "", "fixed4", -1),
    "kl_mean": ("KL divergence", "nats", "small", -1),
    "kl_weights_only": ("KL, weights only", "nats", "small", -1),
    "kl_same_tokens": ("KL, same tokens", "nats", "small", -1),
    "top1_agreement": ("Top-1 agreement", "", "percent", 1),
    "accuracy": ("Accuracy", "", "percent", 1),
    "accuracy_norm": ("Accuracy (norm.)", "", "percent", 1),
    "accuracy_per_token": ("Accuracy (per token)", "", "percent", 1),
    "task_accuracy": ("Task accuracy", "", "percent", 1),
    "pp_tokens_per_s": ("Prefill", "tokens/s", "speed", 1),
    "tg_tokens_per_s": ("Decode", "tokens/s", "speed", 1),
    "ttft_ms": ("First token", "ms", "speed", -1),
    "load_ms": ("Load", "ms", "speed", -1),
    "peak_memory_bytes": ("Peak memory", "", "bytes", -1),
    "peak_gpu_memory_bytes": ("Peak GPU memory", "", "bytes", -1),
}


def heading(metric: str) -> str:
    if metric in METRICS:
        return METRICS[metric][0]
    return metric.replace("kl_p", "KL p").replace("kl_", "KL ").replace("_", " ")


def unit(metric: str) -> str:
    if metric in METRICS:
        return METRICS[metric][1]
    return "nats" if metric.startswith("kl_") else ""


def number(metric: str, value: float | None) -> str:
    """``value`` written for ``metric``, without its unit; an en dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    style = (
        METRICS[metric][2] if metric in METRICS else "percent" if metric.startswith("accuracy") else "small"
    )
    if style == "bytes":
        return spell_size(value)
    if style == "percent":
        return f"{100 * value:.2f} %"
    if style == "fixed2":
        return f"{value:.2f}"
    if style == "fixed4":
        return f"{value:.4f}"
    if style == "speed":
        return (
            f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
        )
    return significant(value, 4 if style == "significant" else 3)


def significant(value: float, digits: int) -> str:
    """Fixed notation where it stays short (0.00123, 12.35, 1,234), else 1.2e-05."""
    if value == 0:
        return "0"
    if value < 0:
        return "−" + significant(-value, digits)
    exponent = math.floor(math.log10(value))
    if exponent < -4 or exponent >= 9:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def interval(metric: str, bounds: Sequence[float] | None) -> str:
    if bounds is None:
        return ""
    low, high = number(metric, bounds[0]), number(metric, bounds[1])
    if low.rpartition(" ")[2] == high.rpartition(" ")[2] and " " in low:  # one unit for both: 98.0 to 98.4 %
        low = low.rpartition(" ")[0]
    return f"{low} to {high}"


def change(value: float) -> str:
    """A relative change: 0.0123 -> +1.23 %."""
    percent = f"{abs(100 * value):.2f}"
    sign = "" if float(percent) == 0 else "+" if value > 0 else "−"
    return f"{sign}{percent} %"


def points(value: float) -> str:
    """A difference of shares: 0.0123 -> +1.23 points."""
    return change(value).replace(" %", " points")


def p_value(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
