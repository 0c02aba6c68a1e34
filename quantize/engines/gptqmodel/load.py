"""Opens GPTQ and AWQ folders: by transformers, whose layers for them are GPTQModel's, by GPTQModel's own
loader, or with the weights unpacked."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.checkpoint.config import read_config
from quantize.checkpoint.library_folder import library_folder
from quantize.checkpoint.tensors import StoredTensors
from quantize.engines.gptqmodel.contained import contained
from quantize.errors import BadInput, StepFailed, Unsupported
from quantize.formats.packed import GPTQMODEL, TRANSFORMERS
from quantize.formats.stored import Stored, stored_packed
from quantize.hf.extensions import ensure_kernel_environment, keep_hub_caches
from quantize.hf.load import load_model, torch_dtype
from quantize.hf.names import renaming
from quantize.hf.refusals import reason
from quantize.packages import install_command
from quantize.quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_packed(
    folder: Path, dtype: str, device: str, *, exact: bool = False, trust_remote_code: bool = False
) -> "PreTrainedModel":
    """A GPTQ or AWQ checkpoint in evaluation mode, computing in ``dtype``; ``exact``: where transformers
    opens it, by kernels that do not round to fewer bits than those.

    Errors: Unsupported where gptqmodel or optimum is not installed; BadInput where a parameter has no
    weights.
    """
    ensure_kernel_environment()
    keep_hub_caches()
    os.environ.setdefault("LOGBAR_ANIMATION", "0")
    stored = None
    try:
        stored = stored_packed(folder, trust_remote_code=trust_remote_code)
        who = stored.format.opener(folder)
    except (BadInput, Unsupported):  # not as this program packs: transformers says what it thinks of it
        who = TRANSFORMERS
    if stored is None or who == TRANSFORMERS:
        options = {"quantization_config": _plain_kernels(folder)} if exact else {}
        return load_model(
            folder, dtype, device, trust_remote_code=trust_remote_code, device_map={"": device}, **options
        )
    if who == GPTQMODEL:
        return load_by_engine(folder, dtype, device, trust_remote_code)
    return load_unpacked(stored, dtype, device, trust_remote_code)


def _plain_kernels(folder: Path) -> Any:
    """transformers' config that asks for weights unpacked and multiplied in the model's own dtype."""
    from transformers import AwqConfig, GPTQConfig
    from transformers.utils.quantization_config import AwqBackend

    stored = read_config(folder)["quantization_config"]
    if stored["quant_method"] == "awq":
        return AwqConfig(bits=stored["bits"], backend=AwqBackend.TORCH_AWQ)
    return GPTQConfig(bits=stored["bits"], backend="torch")


def load_unpacked(stored: Stored, dtype: str, device: str, trust: bool) -> "PreTrainedModel":
    """The plain model, on weights that this program's reader gives."""
    import torch

    wanted = torch_dtype(dtype)
    weights = {name: torch.from_numpy(values).to(wanted) for name, values in stored.whole()}
    return load_model(stored.folder, dtype, device, trust_remote_code=trust, weights=weights)


def load_by_engine(folder: Path, dtype: str, device: str, trust: bool) -> "PreTrainedModel":
    """Errors: Unsupported without GPTQModel, and where it takes names of the file for missing that
    transformers renames; StepFailed where it fails; BadInput where a parameter has no weights."""
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
        place = renaming(model)
        if old := next((name for name in stored if name != missing[0] == place(name)), None):
            raise Unsupported(
                f"{folder}: GPTQModel looks for {missing[0]}, in the file it is {old}; transformers opens it"
            )
        raise BadInput(f"{folder}: holds no weights for {missing[0]}; fetch the whole checkpoint")
    loaded: PreTrainedModel = model.eval()
    return loaded
