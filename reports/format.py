"""Numbers as a person reads them: units, digits that mean something, intervals."""

import math
from collections.abc import Sequence

from quantize.metrics import (
    ACCURACY,
    ACCURACY_NORM,
    ACCURACY_PER_TOKEN,
    BITS_PER_BYTE,
    BYTE_PERPLEXITY,
    DELTA_P_MEAN,
    DELTA_P_RMS,
    EXACT_MATCH,
    GPU_MEMORY_BYTES,
    INTER_TOKEN_MS,
    KL_MAX,
    KL_MEAN,
    KL_MEDIAN,
    KL_PERCENTILES,
    KL_SAME_TOKENS,
    KL_WEIGHTS_ONLY,
    LOAD_MS,
    PASS_AT_1,
    PEAK_MEMORY_BYTES,
    PERPLEXITY,
    PP_TOKENS_PER_S,
    PPL_DIFFERENCE,
    PPL_RATIO,
    SIZE_BYTES,
    TG_TOKENS_PER_S,
    TOP1_AGREEMENT,
    TTFT_MS,
    WORD_PERPLEXITY,
    kl_percentile,
)
from quantize.units import spell_size

#: metric -> (heading, unit, how it is written, direction: -1 smaller is better, 1 larger is better, 0
#: neither)
METRICS: dict[str, tuple[str, str, str, int]] = {
    SIZE_BYTES: ("Size", "", "bytes", -1),
    "bits_per_weight": ("Bits/weight", "", "fixed2", -1),
    PERPLEXITY: ("Perplexity", "", "significant", -1),
    WORD_PERPLEXITY: ("Word perplexity", "", "significant", -1),
    BYTE_PERPLEXITY: ("Byte perplexity", "", "significant", -1),
    BITS_PER_BYTE: ("Bits/byte", "", "fixed4", -1),
    KL_MEAN: ("KL divergence", "nats", "small", -1),
    KL_WEIGHTS_ONLY: ("KL, weights only", "nats", "small", -1),
    KL_SAME_TOKENS: ("KL, same tokens", "nats", "small", -1),
    **{
        kl_percentile(p): (kl_percentile(p).replace("kl_p", "KL p"), "nats", "small", -1)
        for p in KL_PERCENTILES
    },
    KL_MEDIAN: ("KL median", "nats", "small", -1),
    KL_MAX: ("KL max", "nats", "small", -1),
    TOP1_AGREEMENT: ("Top-1 agreement", "", "percent", 1),
    PPL_RATIO: ("Perplexity ratio", "", "small", -1),
    PPL_DIFFERENCE: ("Perplexity difference", "", "small", -1),
    DELTA_P_MEAN: ("Mean change of p", "", "small", 0),
    DELTA_P_RMS: ("RMS change of p", "", "small", -1),
    ACCURACY: ("Accuracy", "", "percent", 1),
    ACCURACY_NORM: ("Accuracy (norm.)", "", "percent", 1),
    ACCURACY_PER_TOKEN: ("Accuracy (per token)", "", "percent", 1),
    EXACT_MATCH: ("Exact match", "", "percent", 1),
    PASS_AT_1: ("Pass@1", "", "percent", 1),
    "task_accuracy": ("Task accuracy", "", "percent", 1),
    PP_TOKENS_PER_S: ("Prefill", "tokens/s", "speed", 1),
    TG_TOKENS_PER_S: ("Decode", "tokens/s", "speed", 1),
    INTER_TOKEN_MS: ("Between tokens", "ms", "speed", -1),
    TTFT_MS: ("First token", "ms", "speed", -1),
    LOAD_MS: ("Load", "ms", "speed", -1),
    PEAK_MEMORY_BYTES: ("Peak memory", "", "bytes", -1),
    GPU_MEMORY_BYTES: ("GPU memory", "", "bytes", -1),
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
    style = METRICS[metric][2] if metric in METRICS else "percent" if metric.startswith(ACCURACY) else "small"
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
