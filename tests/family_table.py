"""The page on families, from the differences that the tests saw."""

from collections.abc import Mapping, Sequence

from family_cases import TABLE, TIGHT, Case

HEAD = """# Families that convert to GGUF

This page is written by a run of `tests/integration/gguf/families/test_families.py` in which every family passed:

    QUANTWRIGHT_FAMILY_TABLE=docs/gguf-families.md pytest tests/integration/gguf/families/test_families.py

For each family a small model is made from transformers' own config class, every weight, norm and bias random. Its F32 GGUF
runs in llama.cpp (KV cache in F32, flash attention off), the model itself in transformers in float32, on the same rows of ids.
*Seen* is the largest difference of any logit over the standard deviation of the logits, *tolerance* the limit of the test:
{tight:g} where llama.cpp computes in float32 throughout, {table:g} where the activation is GELU, which it looks up in a table of
half-precision values (more for models of many layers).

| family | HF architecture | GGUF architecture | seen | tolerance | compared with |
|---|---|---|---|---|---|
"""
TAIL = """
What llama.cpp cannot express is reported before work starts: by a note in the manifest where the
file is right up to some length (sliding windows of Mistral, Qwen, Phi-3, StarCoder 2; dynamic rope scaling),
by a refusal where it would be wrong (another activation, ALiBi in Falcon, a rotation pattern that is built
into its code). Any other architecture is refused, with the list of those in this table. A separate, longer
test (`pytest -m long`) writes each file once per tensor with that tensor's rows in another order, and checks
that the comparison notices.

Rotary embeddings are read as transformers reads them: `rope_scaling` before `rope_parameters`, what stands inside before
what stands beside, every older spelling. Linear scaling and YaRN are keys, which every rotating family has; `attention_factor`,
or `mscale` and `mscale_all_dim`, become `rope.scaling.attn_factor`. Llama 3's scaling, and YaRN with other betas or without
`truncate`, are a tensor of frequencies, LongRoPE two of factors: the architectures `llama`, `minicpm` and `granite` load
them (`phi3` LongRoPE's), in others such a config is refused. `tests/integration/gguf/families/test_rope.py` compares each kind in
19 families on three times as many positions as the model was trained with.

A tied head that is also stored is written once where it equals the embedding; where it differs, both are
written, as transformers keeps both (refused for Gemma 1 and 2 and Cohere, which have no place for it). Stored
masks and frequencies are left out, names may lack `model.`, and the pooling of an embedding model
(`modules.json`) becomes `pooling_type`.

Where these files differ from those of llama.cpp's own converter: Baichuan 2's head is normalised (its own
code does that at every step; the converter does not); GLM-4 of 2024 has its config's context length, epsilon
and rope base (the converter writes the hidden size, 1e-5 and 10000); Falcon and GPT-NeoX have
`rope.freq_base` where it is not 10000, and Falcon its real context length; StableLM, OLMo 2, GPT-NeoX and
Qwen2-MoE with a tied head get `output.weight`, without which llama.cpp does not load them; Gemma 3 has its
sliding pattern where it is not one global layer in six; DeepSeek-V2 without low-rank queries says so where
its layer count does not; ERNIE 4.5 mixtures have the width of their shared expert (the converter derives it
from the number of key heads); OLMoE has its config's epsilon. Bamba's queries and keys change places within the rotated part of each head (the converter
takes whole heads); Granite 4 without experts has the width of its one MLP; Gemma 3n and 4 without a cap on
their logits get one that changes nothing, since llama.cpp has a cap of its own.

Layers that predict further tokens (multi-token prediction) are kept where llama.cpp reads them, as the last
of its blocks (`nextn_predict_layers`): GLM 4.5 to 4.7, Solar Open, DeepSeek V3 (of which the converter drops
them) and V3.2, Qwen3-Next, Qwen3.5, K-EXAONE, Hunyuan 3, Cohere 2 MoE, MiMo V2 Flash, Nemotron 3. Logits do
not depend on them; llama-quantize's rules count them as layers. In types that need an importance matrix, which
no text gives them, they are Q4_K. Elsewhere (ERNIE 4.5, Kimi Linear), or where a tensor of theirs is missing,
they are left out with a note.

Of a checkpoint that also sees or hears, the text model is converted; towers and projectors are left out, with
a note. Read back, such a file is the model of text alone (Qwen 3 for Qwen3-VL, Qwen 2 for Qwen2.5-VL). Falcon
H1's multipliers are in the weights, there is no other place, and come back as ones. Known of llama.cpp, and
said in a note where it matters: its qwen2vl divides by the root mean square without `rms_norm_eps` (the case
here has one of 1e-8); its gpt-oss rounds the ends of YaRN's ramp, which the published models do not; its
deepseek2 has one epsilon for all norms, GLM-4.7-Flash two. Gemma 3n cuts off what lies below a number of
deviations, over n in transformers and over n - 1 in llama.cpp: 3e-5 apart at the published width. Experts in
MXFP4 (gpt-oss) and weights in float8 are read with their scales applied, exactly. MiMo V2 Flash has the window of
transformers, one token more than the converter writes. Latent rows have an epsilon of their own in transformers, 1e-6,
in Kimi Linear (whose case here has it for all norms) and MiniCPM 3 (1e-5: no more than 2e-5 apart).

Left out although both know them: DBRX, which transformers 5.23 rotates with a base of 10000 whatever the published
`attn_config` says (500000); BitNet, whose published model has squared ReLU where llama.cpp computes SiLU. Base models
without a head are taken where it is their embedding.
"""


def table(cases: Sequence[Case], seen: Mapping[str, float]) -> str:
    cells = [
        (
            case.name,
            case.hf_class,
            case.gguf_architecture,
            f"{seen[case.name]:.1e}",
            f"{case.tolerance:g}",
            case.reference,
        )
        for case in cases
    ]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return HEAD.format(tight=TIGHT, table=TABLE) + "\n".join(lines) + "\n" + TAIL
