"""Opens GPTQ and AWQ folders, whose layers are GPTQModel's whoever loads them."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.checkpoint.config import read_config
from quantize.checkpoint.library_folder import library_folder
from quantize.checkpoint.tensors import StoredTensors
from quantize.engines.gptqmodel.contained import contained
from quantize.errors import BadInput, StepFailed, Unsupported
from quantize.hf.extensions import ensure_kernel_environment, keep_hub_caches
from quantize.hf.load import load_model, model_without_weights, torch_dtype
from quantize.hf.refusals import reason
from quantize.packages import install_command
from quantize.quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: a quantized expert, stored separately
EXPERT = re.compile(r"\.experts\.\d+\..*\.qweight$")


def load_gptqmodel(
    folder: Path, dtype: str, device: str, *, trust_remote_code: bool = False
) -> "PreTrainedModel":
    """A GPTQ or AWQ checkpoint through transformers, whose layers for them are GPTQModel's; through
    GPTQModel's own loader where the file holds experts one by one that transformers looks for in one tensor,
    and would leave random.

    Errors: Unsupported where gptqmodel or optimum is not installed.
    """
    ensure_kernel_environment()
    keep_hub_caches()
    os.environ.setdefault("LOGBAR_ANIMATION", "0")
    if own_loader(folder, trust_remote_code=trust_remote_code):
        return _load_by_engine(folder, dtype, device, trust_remote_code)
    return load_model(folder, dtype, device, trust_remote_code=trust_remote_code, device_map={"": device})


def own_loader(folder: Path, *, trust_remote_code: bool = False) -> bool:
    """Whether the folder holds quantized experts one by one and transformers' class has no modules of their
    names."""
    expert = next((name for name in StoredTensors(folder) if EXPERT.search(name)), None)
    if expert is None:
        return False
    model = model_without_weights(folder, "float32", trust_remote_code=trust_remote_code)
    return expert.removesuffix(".qweight") not in dict(model.named_modules())


def _load_by_engine(folder: Path, dtype: str, device: str, trust: bool) -> "PreTrainedModel":
    """Errors: Unsupported without GPTQModel; StepFailed where it fails; BadInput where a parameter has no
    weights."""
    with quiet():
        try:
            from gptqmodel import GPTQModel
        except ImportError:
            raise Unsupported(
                f"{folder}: experts quantized one by one are opened by GPTQModel; install with: "
                f"{install_command('gptq')}"
            ) from None
        opened = library_folder(folder, trust, always=True)
        with contained(str(read_config(folder).get("model_type"))), opened as seen:
            try:
                model: Any = GPTQModel.load(
                    str(seen), device=device, dtype=torch_dtype(dtype), trust_remote_code=trust
                ).model
            except Exception as error:  # of any class
                raise StepFailed(f"{folder}: GPTQModel cannot load it: {reason(error)}") from error
    stored = set(StoredTensors(folder))
    modules = dict(model.named_modules())
    model.unexpected = sorted(name for name in stored if name.rpartition(".")[0] not in modules)
    tied = (
        set(getattr(model, "_tied_weights_keys", None) or ())
        if model.config.get_text_config().tie_word_embeddings
        else set()
    )
    needed = {name for name, _ in model.named_parameters()} - tied
    if missing := sorted(
        name for name in needed if name not in stored and name.rpartition(".")[0] + ".qweight" not in stored
    ):
        raise BadInput(f"{folder}: holds no weights for {missing[0]}; fetch the whole checkpoint")
    loaded: PreTrainedModel = model.eval()
    return loaded
