"""Names and sizes of ggml's tensor types, and the file types (mixtures) that are made of them."""

from dataclasses import dataclass

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

Type = GGMLQuantizationType

UNQUANTIZED = (Type.F32, Type.F16, Type.BF16)
#: types whose block quantizers fall apart without an importance matrix
NEEDS_IMATRIX = (Type.IQ3_XXS, Type.IQ2_XXS, Type.IQ2_XS, Type.IQ2_S, Type.IQ1_M, Type.IQ1_S)
#: safetensors' name of a dtype -> the ggml type that holds the same bits
SAME_BITS = {kind.name: kind for kind in UNQUANTIZED}


#: what ggml's CPU backend rounds the other side of a product to (``vec_dot_type`` in ggml-cpu.c)
ACTIVATIONS = {
    Type.F16: "f16",
    Type.BF16: "bf16",
    **dict.fromkeys(
        (Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.IQ4_NL, Type.MXFP4), "q8_0"
    ),
    **dict.fromkeys(
        (
            Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.IQ4_XS, Type.IQ3_S, Type.IQ3_XXS,
            Type.IQ2_S,
            Type.IQ2_XS, Type.IQ2_XXS, Type.IQ1_M, Type.IQ1_S, Type.TQ1_0, Type.TQ2_0,
        ),
        "q8_k",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class FileType:
    """``default`` is the type of most tensors in such a file; ``value`` goes into ``general.file_type``."""

    name: str
    value: LlamaFileType
    default: Type

    @property
    def quantized(self) -> bool:
        return self.default not in UNQUANTIZED


def _file_type(name: str, default: Type) -> FileType:
    prefix = "ALL_" if name == "f32" else "MOSTLY_"
    return FileType(name, LlamaFileType[prefix + name.upper()], default)


#: Every mixture whose rules ``quantize.gguf.mixture`` knows. Source: llama_ftype_get_default_type in
#: llama.cpp's llama-quant.cpp.
FILE_TYPES: dict[str, FileType] = {
    name: _file_type(name, default)
    for name, default in {
        "f32": Type.F32, "f16": Type.F16, "bf16": Type.BF16,
        "q8_0": Type.Q8_0, "q4_0": Type.Q4_0, "q4_1": Type.Q4_1, "q5_0": Type.Q5_0, "q5_1": Type.Q5_1,
        "q2_k": Type.Q2_K, "q2_k_s": Type.Q2_K, "q3_k_s": Type.Q3_K, "q3_k_m": Type.Q3_K, "q3_k_l": Type.Q3_K,
        "q4_k_s": Type.Q4_K, "q4_k_m": Type.Q4_K, "q5_k_s": Type.Q5_K, "q5_k_m": Type.Q5_K, "q6_k": Type.Q6_K,
        "iq4_nl": Type.IQ4_NL, "iq4_xs": Type.IQ4_XS,
        "iq3_s": Type.IQ3_S, "iq3_m": Type.IQ3_S, "iq3_xs": Type.IQ3_S, "iq3_xxs": Type.IQ3_XXS,
        "iq2_m": Type.IQ2_S, "iq2_s": Type.IQ2_XS, "iq2_xs": Type.IQ2_XS, "iq2_xxs": Type.IQ2_XXS,
        "iq1_m": Type.IQ1_M, "iq1_s": Type.IQ1_S,
        "tq1_0": Type.TQ1_0, "tq2_0": Type.TQ2_0, "mxfp4_moe": Type.MXFP4,
    }.items()
}  # fmt: skip

#: types that an override may choose
TENSOR_TYPES: dict[str, Type] = {
    t.name.lower(): t
    for t in (
        *UNQUANTIZED, Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q2_K, Type.Q3_K, Type.Q4_K,
        Type.Q5_K,
        Type.Q6_K, Type.IQ4_NL, Type.IQ4_XS, Type.IQ3_S, Type.IQ3_XXS, Type.IQ2_S, Type.IQ2_XS, Type.IQ2_XXS,
        Type.IQ1_M,
        Type.IQ1_S, Type.TQ1_0, Type.TQ2_0, Type.MXFP4,
    )
}  # fmt: skip


def block_size(kind: Type) -> int:
    """Weights in one block; a row must be a whole number of blocks."""
    return GGML_QUANT_SIZES[kind][0]


def row_bytes(kind: Type, columns: int) -> int:
    """Bytes of one row of ``columns`` weights."""
    weights, size = GGML_QUANT_SIZES[kind]
    if columns % weights:
        raise ValueError(f"{columns} columns are not a whole number of {kind.name} blocks of {weights}")
    return columns // weights * size


def tensor_bytes(kind: Type, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of ``shape`` (rows first), padding not included."""
    rows = 1
    for extent in shape[:-1]:
        rows *= extent
    return rows * row_bytes(kind, shape[-1])
