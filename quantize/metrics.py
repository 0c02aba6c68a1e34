"""Names of what is measured, as results record them, ``--json`` prints them and reports read them."""

PERPLEXITY = "perplexity"
WORD_PERPLEXITY = "word_perplexity"
BYTE_PERPLEXITY = "byte_perplexity"
BITS_PER_BYTE = "bits_per_byte"

KL_MEAN = "kl_mean"
KL_MEDIAN = "kl_median"
KL_MAX = "kl_max"
KL_WEIGHTS_ONLY = "kl_weights_only"
KL_SAME_TOKENS = "kl_same_tokens"
TOP1_AGREEMENT = "top1_agreement"
PPL_RATIO = "ppl_ratio"
PPL_DIFFERENCE = "ppl_difference"
DELTA_P_MEAN = "delta_p_mean"
DELTA_P_RMS = "delta_p_rms"

ACCURACY = "accuracy"
ACCURACY_NORM = "accuracy_norm"
ACCURACY_PER_TOKEN = "accuracy_per_token"
EXACT_MATCH = "exact_match"
PASS_AT_1 = "pass_at_1"

PP_TOKENS_PER_S = "pp_tokens_per_s"
TG_TOKENS_PER_S = "tg_tokens_per_s"
TTFT_MS = "ttft_ms"
INTER_TOKEN_MS = "inter_token_ms"
LOAD_MS = "load_ms"
PEAK_MEMORY_BYTES = "peak_memory_bytes"
GPU_MEMORY_BYTES = "gpu_memory_bytes"
SIZE_BYTES = "size_bytes"

KL_PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)


def kl_percentile(percent: float) -> str:
    """``kl_p99.9``, ``kl_p99`` ... ``kl_median``."""
    return KL_MEDIAN if percent == 50 else f"kl_p{percent:g}"


#: A task of lm-eval may print its own metrics beside these; a row of generations has no number.
ALL = tuple(
    value for name, value in list(globals().items()) if name.isupper() and isinstance(value, str)
) + tuple(kl_percentile(percent) for percent in KL_PERCENTILES if percent != 50)
