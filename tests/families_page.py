"""The page on families, from the cells of a whole run."""

import re
from collections.abc import Mapping

from family_cells import RECIPES, Cell
from wrapper_cases import NAMES

HEAD = """# Families and methods

This page is written by the long test, from {cells} conversions of {rows} families, in {minutes:.0f} minutes of one
core's time:

    QUANTWRIGHT_FAMILIES=docs/families.md pytest -m long tests/integration/methods/test_families.py -k every_family

(With `QUANTWRIGHT_FAMILY_CELLS=FOLDER` it keeps what it finds and may run in pieces.) Of each family a model of
random weights, norms and biases is made, small and with the demo's tokenizer. A cell is one recipe:
{recipes}.

A number is a conversion that was verified: every tensor that a second reader finds in the files equals what the
engine computed, and a process that has imported nothing of the engine opens the files and runs them. The number
is the mean divergence, in nats, of its logits from those of the second reader's weights: GGUF in llama.cpp,
the others in transformers. **no** is a recipe that `check` refuses, before any work, for the reason below the
table. Where `check` says yes, the conversion succeeded, in every cell. *tensors*: verified, but without the
comparison of logits, for the reason below, which `check` says too. A star: experts stay in the source's dtype,
because transformers holds those of a layer in one parameter, and the library quantizes linear layers only;
`check` says so beforehand. Variants within a family (rope scaling, tied heads, sliding layers), tolerances and
what llama.cpp computes otherwise: [gguf-families.md](gguf-families.md).

Of models that also see ({wrappers}) the text model is converted. Folders keep tower and projector in the source's
dtype; a GGUF leaves them out, with a note. No row yet: Gemma 3n's, whose tower transformers makes with timm.

GPTQ and AWQ are opened by **transformers** (t): `from_pretrained`, with GPTQModel and optimum installed, whose
kernels round activations to bfloat16 on a CPU. By **gptqmodel** (g): `GPTQModel.load` alone, which `eval`,
`bench` and verification use by themselves. By **quantwright** (q): neither opens it, as the experts lie in one
tensor of transformers' model, and GPTQModel looks for other names, gets other logits or fails, or the model's
code does not let the layers be replaced (falcon's own class of linear layers; gpt2 and mamba, whose
initialisation reads weights); `eval` and `bench` open it with the weights unpacked, in the memory of the dense
model. vLLM and SGLang were not run. By the names that their code loads, both read experts one by one of mixtral
(whose names, w1, w2 and w3, GPTQModel does not look for), olmoe, qwen2_moe and qwen3_moe, and vLLM those of
deepseek_v2 and deepseek_v3; their code of the others was not looked at. *Matrices* are those that GPTQ and AWQ
quantize, *kept* the tensors of decoder layers, of two dimensions or more, that they leave: what chooses experts,
convolutions, matrices too small or of odd shapes, biases of stacked experts.

"""


def page(rows: Mapping[str, Mapping[str, Cell]]) -> str:
    """``rows``: by family, the cells by column."""
    reasons: dict[str, int] = {}
    lines = []
    for name in sorted(rows):
        packed = rows[name]["GPTQ"]
        counts = ("", "") if packed.refused else (str(packed.matrices), str(packed.kept))
        cells = [_spelled(rows[name][column], reasons) for column in RECIPES]
        lines.append(f"| {' | '.join((name, *counts, *cells))} |\n")
    columns = ("family", "matrices", "kept", *RECIPES)
    every = [cell for row in rows.values() for cell in row.values()]
    head = HEAD.format(
        cells=sum(not cell.refused for cell in every),
        rows=len(rows),
        minutes=sum(cell.seconds for cell in every) / 60,
        wrappers=", ".join(sorted(set(NAMES) & set(rows))),
        recipes=", ".join(f"{column} `{recipe}`" for column, recipe in RECIPES.items()),
    )
    table = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n" + "".join(lines)
    below = "".join(f"\n{number}. {reason}" for reason, number in reasons.items())
    return head + table + below + "\n"


def _spelled(cell: Cell, reasons: dict[str, int]) -> str:
    def numbered(reason: str) -> str:
        return f"[{reasons.setdefault(_brief(reason), len(reasons) + 1)}]"

    if cell.refused:
        return f"no {numbered(cell.refused)}"
    opener = f" {cell.opener[0]}" if cell.opener else ""
    star = " *" if cell.experts else ""
    value = f"{cell.kl:.0e}" if cell.kl is not None else f"*tensors* {numbered(cell.lower)}"
    return value + opener + star


def _brief(reason: str) -> str:
    """Without the list of all that would do, and names that differ from family to family."""
    reason = re.sub(
        r": The checkpoint .* does not recognize this architecture.*", ": an unknown model type", reason
    )
    return re.sub(r"^architecture \w+ cannot", "this architecture cannot", reason.partition("; known: ")[0])
