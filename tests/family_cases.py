"""One small random-weight model per family, made with transformers' own config class, or with one that
computes the same.

Biases and norms are random too, so that a tensor that is dropped, swapped or permuted wrongly shows in the
logits.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from family_case import SMALL, TABLE, TIGHT, YARN, Case, Tensors
from family_cases_2026 import MORE
from family_cases_hybrid import HYBRIDS


def internlm2(tensors: Tensors, config: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """Llama's tensors under InternLM 2's names, q, k, v fused group by group as its modelling code splits
    them: (groups, queries per group + 2, head, hidden)."""
    groups, head = config["num_key_value_heads"], config["hidden_size"] // config["num_attention_heads"]
    renamed = {
        "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2",
        "mlp.up_proj": "feed_forward.w3",
        "model.embed_tokens": "model.tok_embeddings", "lm_head": "output",
    }  # fmt: skip
    out: Tensors = {}
    for name, array in tensors.items():
        if ".self_attn.q_proj" in name:
            k, v = tensors[name.replace("q_proj", "k_proj")], tensors[name.replace("q_proj", "v_proj")]
            hidden = array.shape[1]
            parts = [part.reshape(groups, -1, head, hidden) for part in (array, k, v)]
            out[name.replace("self_attn.q_proj", "attention.wqkv")] = np.concatenate(parts, axis=1).reshape(
                -1, hidden
            )
        elif ".self_attn.k_proj" in name or ".self_attn.v_proj" in name:
            continue
        else:
            for old, new in renamed.items():
                name = name.replace(old, new)
            out[name] = array
    return out, {**config, "architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2"}


def baichuan2(tensors: Tensors, config: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """Llama's tensors with q, k, v one below the other, and a head whose rows have other lengths: Baichuan
    2's code divides each by its length, so the Llama (whose head has rows of length one) gives its logits."""
    out: Tensors = {}
    for name, array in tensors.items():
        if ".self_attn.q_proj" in name:
            fused = [tensors[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            out[name.replace("q_proj", "W_pack")] = np.concatenate(fused)
        elif name == "lm_head.weight":
            out[name] = array * np.random.default_rng(5).uniform(0.5, 3, (len(array), 1)).astype(np.float32)
        elif ".self_attn.k_proj" not in name and ".self_attn.v_proj" not in name:
            out[name] = array
    return out, {
        **config,
        "architectures": ["BaichuanForCausalLM"],
        "model_type": "baichuan",
        "z_loss_weight": 0,
    }


def minicpm(tensors: Tensors, config: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """Granite computes MiniCPM's model: the same scaling factors under other names."""
    for name in ("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling"):
        config.pop(name)
    scales = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16}
    return tensors, {**config, **scales, "architectures": ["MiniCPMForCausalLM"], "model_type": "minicpm"}


LONGROPE = {
    "original_max_position_embeddings": 256, "max_position_embeddings": 1024,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1 + i / 8 for i in range(8)],
        "long_factor": [2.0 + i for i in range(8)], "original_max_position_embeddings": 256,
    },
}  # fmt: skip
GEMMA = {"head_dim": 32, "tie_word_embeddings": True}
#: whose norms multiply by one plus their weight
ONE_PLUS = (
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "qwen3_next",
    "qwen3_5_text",
    "qwen3_5",
    "qwen3_5_moe_text",
    "nemotron",
)
CASES = (
    Case("Llama 2", "llama", {"num_key_value_heads": 4}),
    Case(
        "Llama 3 (rope scaling, GQA)",
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64, "rope_theta": 500000.0,
            }
        },
    ),
    Case("Llama 3.2 (tied)", "llama", {"tie_word_embeddings": True, "head_dim": 32}),
    Case("Llama with biases", "llama", {"attention_bias": True, "mlp_bias": True}),
    Case("Llama, linear rope scaling", "llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0,
    "rope_theta": 1e4}}),
    Case("Llama, yarn", "llama", {"rope_parameters": YARN}),
    Case("Mistral", "mistral", {"head_dim": 16, "sliding_window": None}),
    Case("Mixtral", "mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    Case("Yi", "llama", {"rope_parameters": {"rope_theta": 5e6, "rope_type": "default"},
    "rms_norm_eps": 1e-5}),
    Case("DeepSeek-coder", "llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0,
    "rope_theta": 1e5}}),
    Case("Qwen2", "qwen2", {"tie_word_embeddings": True}),
    Case("CodeQwen1.5", "qwen2", {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
    "rms_norm_eps": 1e-5}),
    Case("Qwen3", "qwen3", {"head_dim": 32}),
    Case(
        "Qwen2-MoE",
        "qwen2_moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 64},
    ),
    Case(
        "Qwen3-MoE",
        "qwen3_moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 32,
        "norm_topk_prob": True},
    ),
    Case("Gemma", "gemma", GEMMA, TABLE),
    Case("Gemma 2", "gemma2", {**GEMMA, "query_pre_attn_scalar": 32, "sliding_window": 16}, TABLE),
    Case(
        "Gemma 2 27B (other query scale)",
        "gemma2",
        {**GEMMA, "query_pre_attn_scalar": 16, "sliding_window": 16, "num_hidden_layers": 46},
        4 * TABLE,  # 46 layers add up
    ),
    Case(
        "Gemma 3",
        "gemma3_text",
        {
            **GEMMA, "query_pre_attn_scalar": 32, "sliding_window": 16, "num_hidden_layers": 7,
            "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
        },
        TABLE,
    ),
    Case(
        "Gemma 3 (other pattern)",
        "gemma3_text",
        {
            **GEMMA, "query_pre_attn_scalar": 32, "sliding_window": 16, "layer_types": ["full_attention",
            "sliding_attention"],
            "final_logit_softcapping": 20.0,
        },
        TABLE,
    ),
    Case("Phi-2", "phi", {"num_key_value_heads": 4, "intermediate_size": 256}, TABLE),
    Case("Phi-3", "phi3", {"num_key_value_heads": 4, "original_max_position_embeddings": 128}),
    Case("Phi-3 (longrope, short)", "phi3", LONGROPE),
    Case("Phi-3 (longrope, long)", "phi3", LONGROPE, length=300),
    Case(
        "Phi-4-mini (partial rotation, tied)",
        "phi3",
        {
            "tie_word_embeddings": True, "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 128,
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 0.75},
        },
    ),
    Case("GLM-4 (0414)", "glm4", {"head_dim": 32}),
    Case("GLM-4 (2024)", "glm", {"head_dim": 16}),
    Case(
        "MiniCPM",
        "granite",
        {
            "attention_multiplier": 16**-0.5, "embedding_multiplier": 12.0,
            "residual_multiplier": 1.4 / 2**0.5,
            "logits_scaling": 64 / 16,
        },
        rewrite=minicpm,
        reference="transformers' Granite, which computes the same model",
        architecture="MiniCPMForCausalLM",
    ),
    Case(
        "Baichuan 2",
        "llama",
        {"num_key_value_heads": 4, "num_hidden_layers": 32},  # by which llama.cpp knows that it rotates
        rewrite=baichuan2,
        reference="transformers' Llama with the head's rows of length one",
        architecture="BaichuanForCausalLM",
    ),
    Case(
        "InternLM2",
        "llama",
        rewrite=internlm2,
        reference="transformers' Llama with the tensors renamed and fused",
        architecture="InternLM2ForCausalLM",
    ),
    Case(
        "DeepSeek-V2-Lite",
        "deepseek_v2",
        {
            "num_hidden_layers": 27,
            "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 2,
            "first_k_dense_replace": 1, "moe_intermediate_size": 32, "kv_lora_rank": 32, "q_lora_rank": None,
            "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "head_dim": 8,
            "topk_method": "greedy",
            "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707, "beta_fast": 32,
            "beta_slow": 1},
        },
        4 * TIGHT,  # 27 layers, by which llama.cpp knows this model
    ),
    Case(
        "DeepSeek-V2 (low-rank queries)",
        "deepseek_v2",
        {
            "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
            "first_k_dense_replace": 1, "moe_intermediate_size": 32, "kv_lora_rank": 32, "q_lora_rank": 48,
            "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 24, "head_dim": 8,
            "topk_method": "greedy",
            "routed_scaling_factor": 2.5,
        },
    ),
    Case("StarCoder2", "starcoder2", {"sliding_window": None, "tie_word_embeddings": True}, TABLE),
    Case("StableLM 3B", "stablelm", {"num_key_value_heads": 4}),
    Case("StableLM 2 1.6B (biases)", "stablelm", {"use_qkv_bias": True, "num_key_value_heads": 4}),
    Case("StableLM 2 12B (parallel)", "stablelm", {"qk_layernorm": True, "use_parallel_residual": True}),
    Case("OLMo 2", "olmo2", {}),
    Case("Cohere Command-R", "cohere", {"tie_word_embeddings": True, "logit_scale": 0.25}),
    Case("Cohere Command-R7B", "cohere2", {"tie_word_embeddings": True, "num_hidden_layers": 4,
    "sliding_window": 16}),
    Case(
        "Granite",
        "granite",
        {"attention_multiplier": 0.2, "embedding_multiplier": 6.0, "residual_multiplier": 0.4,
        "logits_scaling": 3.0},
    ),
    Case("SmolLM3", "smollm3", {"num_hidden_layers": 4, "tie_word_embeddings": True}),
    Case(
        "Falcon 7B", "falcon", {"tie_word_embeddings": True, "ffn_hidden_size": 256}, TABLE,
        without=("intermediate_size", "num_key_value_heads"),
    ),
    Case(
        "Falcon 40B", "falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, TABLE,
        without=("intermediate_size", "num_key_value_heads"),
    ),
    Case("GPT-2", "gpt2", {"tie_word_embeddings": True}, TABLE, without=("intermediate_size",
    "num_key_value_heads")),
    Case("GPT-NeoX (Pythia)", "gpt_neox", {}, TABLE, without=("num_key_value_heads",)),
    Case("GPT-NeoX (sequential)", "gpt_neox", {"use_parallel_residual": False}, TABLE,
    without=("num_key_value_heads",)),
    Case("BLOOM", "bloom", {"tie_word_embeddings": True}, TABLE, without=("intermediate_size",
    "num_key_value_heads")),
    *MORE,
    *HYBRIDS,
)  # fmt: skip


class Table(torch.nn.Module):
    """GELU as llama.cpp looks it up: of half-precision values, in half precision."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(inputs.half().float(), approximate="tanh").half().float()


def as_llamacpp(model: Any) -> None:
    """In Gemma 3n, whose 22 layers make much of little, what llama.cpp is known to compute otherwise: GELU by
    its table, and a cut-off by the deviation over n - 1 instead of n, which shows where n is small."""

    def cut(inputs: torch.Tensor) -> torch.Tensor:
        deviation = inputs.std(-1, keepdim=True, unbiased=True)
        return torch.relu(inputs - inputs.mean(-1, keepdim=True) - deviation * 1.6448533535003662)

    for layer in model.model.layers:
        layer.mlp._gaussian_topk, layer.mlp.act_fn, layer.act_fn = cut, Table(), Table()


def make(case: Case, folder: Path) -> tuple[torch.nn.Module, Path]:
    """-> (float32 model that the GGUF must agree with, checkpoint folder without tokenizer)."""
    import json

    from safetensors.numpy import load_file, save_file
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    settings = {key: value for key, value in SMALL.items() if key not in case.without} | case.settings
    auto: Any = AutoModelForCausalLM
    if case.vision is not None:
        auto = AutoModelForImageTextToText
        tied = settings["tie_word_embeddings"]
        settings = {"text_config": settings, "vision_config": case.vision, "tie_word_embeddings": tied}
    config = CONFIG_MAPPING[case.model_type](**settings)
    config._attn_implementation = "eager"
    torch.manual_seed(7)
    model = auto.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norms around their usual value; matrices large enough that every part matters in the logits.
            spread = 0.2 if parameter.ndim == 1 else 0.15
            centre = (
                1.0
                if parameter.ndim == 1 and name.endswith("weight") and case.model_type not in ONE_PLUS
                else 0.0
            )
            parameter.copy_(centre + spread * torch.randn(parameter.shape))
        for name, buffer in model.named_buffers():
            if name.endswith(("correction_bias", "expert_bias", "layer_scalar")):
                buffer.copy_(float("scalar" in name) + 0.2 * torch.randn(buffer.shape))
        if case.rewrite is baichuan2:
            model.lm_head.weight.div_(model.lm_head.weight.norm(dim=1, keepdim=True))
    if case.model_type == "gemma3n_text":
        as_llamacpp(model)
    model.save_pretrained(folder)
    if case.rewrite:
        tensors, raw = case.rewrite(
            load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
        )
        save_file(
            {name: np.ascontiguousarray(array) for name, array in tensors.items()},
            folder / "model.safetensors",
        )
        (folder / "config.json").write_text(json.dumps(raw))
    return model, folder


def write_gguf_f32(folder: Path, out: Path, spoil: str = "") -> list[str]:
    """The checkpoint as a float32 GGUF with a vocabulary of placeholders; only the families' code decides
    what is in it.

    ``spoil`` names a tensor that is written with its rows (or values) in another order. Returns the tensors'
    names.
    """
    from gguf import GGUFValueType, TokenType

    from quantize.gguf.container.writer import Planned, write_gguf
    from quantize.gguf.families.base import Mapped
    from quantize.gguf.families.plan import plan
    from quantize.kernels.block_types import Type
    from quantize.sources.opening import open_checkpoint

    checkpoint = open_checkpoint(folder, tokenizer=False)
    family = plan(checkpoint)
    size = next(m.shape[0] for m in family.tensors if m.name == "token_embd.weight")
    kvs: dict[str, tuple[Any, GGUFValueType]] = {
        "general.architecture": (family.architecture, GGUFValueType.STRING),
        "general.file_type": (0, GGUFValueType.UINT32),
        **family.kvs,
        "tokenizer.ggml.model": ("gpt2", GGUFValueType.STRING),
        "tokenizer.ggml.pre": ("gpt-2", GGUFValueType.STRING),
        "tokenizer.ggml.tokens": ([f"t{index}" for index in range(size)], GGUFValueType.ARRAY),
        "tokenizer.ggml.token_type": ([int(TokenType.NORMAL)] * size, GGUFValueType.ARRAY),
        "tokenizer.ggml.merges": (["t 0"], GGUFValueType.ARRAY),
        "tokenizer.ggml.bos_token_id": (0, GGUFValueType.UINT32),
        "tokenizer.ggml.eos_token_id": (0, GGUFValueType.UINT32),
    }

    def built(mapped: Mapped) -> np.ndarray:
        array = mapped.build([checkpoint.read_float32(name) for name in mapped.sources])
        if mapped.name == spoil:  # experts: within each; all of them permuted alike would change nothing
            rolled = np.roll(array, 1, axis=-2 if array.ndim > 1 and array.shape[-2] > 1 else -1)
            array = rolled if array.size > 1 else 2 * array  # a single value has no other order
        return array.reshape(-1, mapped.shape[-1])

    planned = [Planned(m.name, m.shape, Type.F32, partial(built, m), lambda: None) for m in family.tensors]
    write_gguf(out, kvs, planned, threads=1)
    return [mapped.name for mapped in family.tensors]


def llamacpp_logits(path: Path, ids: np.ndarray) -> np.ndarray:
    """float32 logits (rows, length, vocabulary), KV cache in float32, flash attention off."""
    from quantize.recipe import RunOptions
    from quantize.runtimes.opening import open_runtime

    with open_runtime(
        path, RunOptions(threads=1, progress=False), exact=True, context=ids.shape[1]
    ) as runtime:
        got = np.empty((*ids.shape, runtime.vocabulary), np.float32)

        def keep(row: int, first: int, logits: np.ndarray) -> None:
            got[row, first : first + len(logits)] = logits

        runtime.logits(ids, 0, keep)
    return got


def compare(case: Case, folder: Path) -> float:
    """Largest difference of any logit between transformers and llama.cpp, over the standard deviation of the
    logits."""
    model, checkpoint = make(case, folder / "hf")
    write_gguf_f32(checkpoint, folder / "model.gguf")
    ids = np.random.default_rng(3).integers(1, SMALL["vocab_size"], (2, case.length))
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)).logits.float().numpy()
    got = llamacpp_logits(folder / "model.gguf", ids)
    return float(np.abs(got - expected).max() / expected.std())
