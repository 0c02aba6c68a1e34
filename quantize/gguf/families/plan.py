"""From a checkpoint's headers to what its GGUF holds: tensor names and shapes, how each is built, and the
hyperparameters.

A family is a small file of data beside this one: rules that name tensors, key-values beyond the common ones,
and exceptions. ``decoder`` holds what is shared. Facts (names, keys, permutations) follow llama.cpp's own
converter and its ``src/models``.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.entries import Entries
from quantize.errors import BadInput, StepFailed, Unsupported
from quantize.gguf.container.reader import GgufFile
from quantize.gguf.families.base import FamilyPlan, Mapped
from quantize.gguf.families.from_rules import make_plan

#: HF architecture class -> module of this package that knows it
KNOWN: dict[str, str] = {
    "AfmoeForCausalLM": "afmoe",
    "ApertusForCausalLM": "apertus",
    "ArceeForCausalLM": "arcee",
    "BaichuanForCausalLM": "baichuan",
    "BaiChuanForCausalLM": "baichuan",
    "BambaForCausalLM": "bamba",
    "BloomForCausalLM": "bloom",
    "BloomModel": "bloom",
    "Cohere2ForCausalLM": "cohere",
    "Cohere2MoeForCausalLM": "cohere_moe",
    "CohereForCausalLM": "cohere",
    "DeepseekV2ForCausalLM": "deepseek2",
    "DeepseekV32ForCausalLM": "deepseek3",
    "DeepseekV3ForCausalLM": "deepseek3",
    "Dots1ForCausalLM": "dots1",
    "Ernie4_5_ForCausalLM": "ernie",
    "Ernie4_5_MoeForCausalLM": "ernie",
    "Ernie4_5ForCausalLM": "ernie",
    "Exaone4ForCausalLM": "exaone4",
    "ExaoneMoeForCausalLM": "exaone_moe",
    "ExaoneMoEForCausalLM": "exaone_moe",
    "FalconForCausalLM": "falcon",
    "FalconH1ForCausalLM": "falcon_h1",
    "FalconMambaForCausalLM": "mamba",
    "Gemma2ForCausalLM": "gemma",
    "Gemma3ForCausalLM": "gemma",
    "Gemma3ForConditionalGeneration": "gemma",
    "Gemma3nForCausalLM": "gemma_layers",
    "Gemma3nForConditionalGeneration": "gemma_layers",
    "Gemma4ForCausalLM": "gemma_layers",
    "Gemma4ForConditionalGeneration": "gemma_layers",
    "GemmaForCausalLM": "gemma",
    "Glm4ForCausalLM": "glm",
    "Glm4MoeForCausalLM": "glm_moe",
    "Glm4MoeLiteForCausalLM": "glm_moe",
    "GlmForCausalLM": "glm",
    "GPT2LMHeadModel": "gpt2",
    "GPTBigCodeForCausalLM": "starcoder",
    "GPTNeoXForCausalLM": "gptneox",
    "GptOssForCausalLM": "gpt_oss",
    "GraniteForCausalLM": "granite",
    "GraniteMoeForCausalLM": "granite_moe",
    "GraniteMoeHybridForCausalLM": "granite_hybrid",
    "GraniteMoeSharedForCausalLM": "granite_moe",
    "HunYuanDenseV1ForCausalLM": "hunyuan",
    "HunYuanMoEV1ForCausalLM": "hunyuan",
    "HYV3ForCausalLM": "hy_v3",
    "InternLM2ForCausalLM": "internlm2",
    "JambaForCausalLM": "jamba",
    "KimiLinearForCausalLM": "kimi_linear",
    "LagunaForCausalLM": "laguna",
    "Lfm2ForCausalLM": "lfm2",
    "Lfm2MoeForCausalLM": "lfm2",
    "Llama4ForCausalLM": "llama4",
    "Llama4ForConditionalGeneration": "llama4",
    "LlamaForCausalLM": "llama",
    "LlamaModel": "llama",
    "Mamba2ForCausalLM": "mamba",
    "MambaForCausalLM": "mamba",
    "MellumForCausalLM": "mellum",
    "MiMoV2FlashForCausalLM": "mimo",
    "MiniCPM3ForCausalLM": "minicpm3",
    "MiniCPMForCausalLM": "granite",
    "MiniMaxM2ForCausalLM": "minimax",
    "Ministral3ForCausalLM": "mistral3",
    "Mistral3ForConditionalGeneration": "mistral3",
    "MistralForCausalLM": "llama",
    "MistralModel": "llama",
    "MixtralForCausalLM": "mixtral",
    "NemotronForCausalLM": "nemotron",
    "NemotronHForCausalLM": "nemotron_h",
    "Olmo2ForCausalLM": "olmo2",
    "Olmo3ForCausalLM": "olmo2",
    "OlmoeForCausalLM": "olmo",
    "OlmoForCausalLM": "olmo",
    "Phi3ForCausalLM": "phi",
    "PhiForCausalLM": "phi",
    "Qwen2_5_VLForConditionalGeneration": "qwen",
    "Qwen2ForCausalLM": "qwen",
    "Qwen2Model": "qwen",
    "Qwen2MoeForCausalLM": "qwen_moe",
    "Qwen3_5ForCausalLM": "qwen_next",
    "Qwen3_5ForConditionalGeneration": "qwen_next",
    "Qwen3_5MoeForCausalLM": "qwen_next",
    "Qwen3_5MoeForConditionalGeneration": "qwen_next",
    "Qwen3ForCausalLM": "qwen",
    "Qwen3Model": "qwen",
    "Qwen3MoeForCausalLM": "qwen_moe",
    "Qwen3NextForCausalLM": "qwen_next",
    "Qwen3VLForConditionalGeneration": "qwen",
    "RWForCausalLM": "falcon",
    "SeedOssForCausalLM": "seed_oss",
    "SmolLM3ForCausalLM": "smollm3",
    "SolarOpenForCausalLM": "solar_open",
    "StableLMEpochForCausalLM": "stablelm",
    "StableLmForCausalLM": "stablelm",
    "Starcoder2ForCausalLM": "starcoder2",
    "YoutuForCausalLM": "youtu",
}
_SILU = "llama.cpp computes SiLU, the published model squared ReLU"
#: HF architecture class, which llama.cpp knows too -> why no GGUF is made of it
LEFT_OUT = {
    "BitNetForCausalLM": _SILU,
    "BitnetForCausalLM": _SILU,
    "DbrxForCausalLM": "transformers 5 rotates with a base of 10000 whatever the published attn_config says "
    "(500000), so that no file could be held against it",
}


def plan(checkpoint: Checkpoint) -> FamilyPlan:
    """What the GGUF of ``checkpoint`` holds; reads headers only.

    Errors: Unsupported where the architecture is unknown (the message lists those known) or left out (why),
    where it uses something llama.cpp cannot express, or where a tensor is left over or missing (named);
    BadInput where shapes contradict the config.
    """
    if reason := LEFT_OUT.get(checkpoint.architecture):
        raise Unsupported(
            f"{checkpoint.source}: architecture {checkpoint.architecture} is not made into GGUF: {reason}; "
            "take a recipe of another method"
        )
    if checkpoint.architecture not in KNOWN:
        raise Unsupported(
            f"{checkpoint.source}: architecture {checkpoint.architecture} cannot be made into GGUF; "
            f"known: {', '.join(sorted(KNOWN))}"
        )
    module = import_module(f"{__package__}.{KNOWN[checkpoint.architecture]}")
    return make_plan(module.family(checkpoint), checkpoint)


def dequantize(file: GgufFile, tensors: Sequence[Mapped], source: str) -> Iterator[tuple[str, np.ndarray]]:
    """What ``file``, anybody's GGUF of a checkpoint called ``source`` whose family plans ``tensors``, holds
    for each tensor of it: (HF name, float32 array of its shape).

    By gguf-py's numpy reader of the block formats, and the families' way back; no code of llama.cpp's runs.

    Errors: BadInput where the two do not hold the same tensors.
    """
    _check_same_tensors(file, tensors, source)
    yield from restore(tensors, file.dequantize)


def by_entry(
    file: GgufFile, tensors: Sequence[Mapped], source: str
) -> Iterator[tuple[str, np.ndarray | Entries]]:
    """As ``dequantize``; experts' matrices are read one at a time, and what holds those of
    a layer in one tensor comes as ``Entries``."""
    _check_same_tensors(file, tensors, source)
    owners: dict[str, list[Mapped]] = {}
    for mapped in tensors:
        for name in mapped.sources:
            owners.setdefault(name, []).append(mapped)
    apart = {name: its for name, its in owners.items() if _is_apart(its)}
    # a tensor of the file goes one way or the other with all that it is made from
    while mixed := {name for m in tensors if not apart.keys() >= set(m.sources) for name in m.sources} & {
        *apart
    }:
        apart = {name: its for name, its in apart.items() if name not in mixed}
    pieces, last = _Pieces(tensors), {name: its[-1] for name, its in owners.items()}
    for mapped in tensors:
        if apart.keys() >= set(mapped.sources):
            for index, name in enumerate(mapped.sources):
                if last[name] is not mapped:
                    continue
                if len(mapped.sources) > 1:
                    yield name, entry_of(mapped, index, file.matrix)
                else:
                    read = partial(joined_entry, name, apart[name], file.matrix)
                    yield name, Entries(mapped.restored[0], read)
        else:
            yield from pieces.of(mapped, file.dequantize(mapped.name))


def _is_apart(owners: Sequence[Mapped]) -> bool:
    """Whether what ``owners`` hold together is a tensor of all experts, or one of them one expert's."""
    return all(m.of_entry is not None and (len(m.sources) == 1 or len(owners) == 1) for m in owners)


#: (tensor of a file, number of a matrix) -> that, float32 or whatever its values are held in
Matrix = Callable[[str, int], np.ndarray]


def joined_entry(name: str, owners: Sequence[Mapped], read: Matrix, index: int) -> np.ndarray:
    """One entry of source tensor ``name``, of each entry of which ``owners`` hold a part."""
    found = entry_of(owners[0], index, read)
    for mapped in owners[1:]:
        part = entry_of(mapped, index, read)
        found = np.where(np.isnan(part), found, part)
    if len(owners) > 1:
        _check_covered(name, found)
    return found


def entry_of(mapped: Mapped, index: int, read: Matrix) -> np.ndarray:
    """Of the only source its entry ``index``, as far as ``mapped`` holds it; of several that source."""
    assert mapped.of_entry is not None
    shape = mapped.restored[index] if len(mapped.sources) > 1 else mapped.restored[0][1:]
    return mapped.of_entry.restore(read(mapped.name, index), [shape])[0]


def _check_same_tensors(file: GgufFile, tensors: Sequence[Mapped], source: str) -> None:
    for mapped in tensors:
        found = list(file.tensors[mapped.name].shape) if mapped.name in file.tensors else "no such tensor"
        if mapped.sources and found != list(mapped.shape):
            raise BadInput(f"{file.path}: {mapped.name}: expected shape {list(mapped.shape)}, found {found}")
    if unknown := sorted(file.tensors.keys() - {mapped.name for mapped in tensors}):
        raise BadInput(f"{file.path}: {unknown[0]}: {source} has no tensors for it; is that its source?")


def restore(tensors: Sequence[Mapped], read: Callable[[str], np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """(HF name, float32 array of the source's shape) for every source tensor; ``read`` returns a GGUF tensor
    by name as float32.

    Sources spread over several GGUF tensors are joined. Errors: StepFailed where a piece of one is missing.
    """
    pieces = _Pieces(tensors)
    for mapped in tensors:
        if mapped.sources:
            yield from pieces.of(mapped, read(mapped.name))


class _Pieces:
    """Sources of which a part has been read."""

    def __init__(self, tensors: Sequence[Mapped]):
        self._left = Counter(source for mapped in tensors for source in mapped.sources)
        self._spread = {source for source, count in self._left.items() if count > 1}
        self._found: dict[str, np.ndarray] = {}

    def of(self, mapped: Mapped, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Those that are whole with this tensor of the file. Errors: StepFailed where a piece is missing."""
        for source, part in zip(mapped.sources, mapped.restore(array), strict=True):
            if source not in self._spread:
                yield source, part
                continue
            if source in self._found:
                part = np.where(np.isnan(part), self._found[source], part)
            self._left[source] -= 1
            if self._left[source]:
                self._found[source] = part
                continue
            self._found.pop(source, None)
            _check_covered(source, part)
            yield source, part


def _check_covered(source: str, array: np.ndarray) -> None:
    if np.isnan(array).any():
        raise StepFailed(
            f"{source}: the GGUF tensors made from it do not cover all of it; please report this"
        )
