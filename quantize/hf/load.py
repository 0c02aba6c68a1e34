"""Open an HF folder as a transformers model, whatever its weights are stored as; or quantize one on the
fly."""

import copy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.checkpoint.config import read_config
from quantize.checkpoint.library_folder import library_folder
from quantize.checkpoint.weight_files import weight_files
from quantize.dtypes import DENSE
from quantize.errors import BadInput, StepFailed, Unsupported
from quantize.files import read_json
from quantize.hf.extensions import ensure_kernel_environment
from quantize.hf.refusals import reason, refusals
from quantize.hf.wrappers import auto_class, ties_head
from quantize.packages import install_command
from quantize.quiet import quiet
from quantize.recipe import RunOptions
from quantize.terminal import printable

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

QUANTO_MAP = "quanto_qmap.json"
#: a threshold of LLM.int8() that all but zeros reach (0 would switch the treatment of outliers off)
EVERY_ACTIVATION = 1e-30


def storage_format(folder: Path, config: dict[str, Any]) -> str:
    """``dense``, ``quanto``, or quant_method of the config: ``gptq``, ``awq``, ``bitsandbytes``, ..."""
    if (folder / QUANTO_MAP).is_file():
        return "quanto"
    quantization = config.get("quantization_config")
    return str(quantization.get("quant_method", "unknown")) if quantization else "dense"


def torch_dtype(name: str) -> "torch.dtype":
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype


def stored_dtype(config: dict[str, Any]) -> str:
    """The dtype that config.json names, in either spelling; float32 where it names none."""
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else {}
    name = config.get("dtype") or config.get("torch_dtype") or (text or {}).get("dtype") or "float32"
    return str(name) if name in DENSE else "float32"


def compute_dtype(stored: str, run: RunOptions, exact: bool) -> str:
    """What ``run`` asks for; else float32 on a CPU, and the dtype of the weights elsewhere."""
    if run.dtype != "auto":
        return run.dtype
    return "float32" if exact or run.resolved_device == "cpu" else stored


def head_name(model: "PreTrainedModel") -> str | None:
    """The module that is its output layer."""
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), None)


def load_model(
    folder: Path,
    dtype: str,
    device: str,
    *,
    trust_remote_code: bool = False,
    weights: "dict[str, torch.Tensor] | None" = None,
    **options: Any,
) -> "PreTrainedModel":
    """AutoModelForCausalLM, or what opens the whole of a model that also sees (``auto_class``), in
    evaluation mode, every weight from the folder's safetensors, or from
    ``weights`` by its names.

    ``dtype`` is the one computed in. ``options`` go to from_pretrained (``quantization_config``,
    ``device_map``).

    Errors: Unsupported for an architecture that transformers lacks; BadInput for weights that do not fit the
    config: from_pretrained would fill them with random numbers and say so in a log only.
    """
    config = read_config(folder)
    with quiet(), library_folder(folder, trust_remote_code) as seen:
        from safetensors import SafetensorError

        common = {"dtype": torch_dtype(dtype), "output_loading_info": True, **options}
        kind = f"{config.get('architectures') or 'it'} (model_type {config.get('model_type')!r})"
        with refusals(str(folder), f"cannot open {printable(kind, 200)}"):
            try:
                if weights is None:
                    loaded: Any = auto_class(config).from_pretrained(
                        seen,
                        use_safetensors=True,
                        local_files_only=True,
                        trust_remote_code=trust_remote_code,
                        **common,
                    )
                else:  # which only the class of the model accepts
                    empty = model_without_weights(folder, dtype, trust_remote_code=trust_remote_code)
                    empty.config.__dict__.pop("quantization_config", None)  # these are whole
                    loaded = type(empty).from_pretrained(
                        None, config=empty.config, state_dict=weights, **common
                    )
            except ImportError as error:
                raise Unsupported(f"{folder}: {reason(error)}") from error
            except (OSError, RuntimeError, SafetensorError) as error:
                raise StepFailed(f"{folder}: transformers cannot load it: {reason(error)}") from error
        model, info = loaded
        model.name_or_path = model.config._name_or_path = str(folder)
        if "device_map" not in options:
            if config.get("quantization_config"):
                unquantized_in(model, torch_dtype(dtype))
            model = model.to(device)
    missing = sorted(set(info["missing_keys"]) | {str(key[0]) for key in info.get("mismatched_keys") or ()})
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise BadInput(
            f"{folder}: holds no weights of the right shape for "
            f"{missing[0]}{more}; fetch the whole checkpoint"
        )
    ready: Any = model.eval()
    ready.unexpected = sorted(info["unexpected_keys"])  # which transformers says in its log
    loaded_model: PreTrainedModel = ready
    return loaded_model


def unquantized_in(model: "torch.nn.Module", dtype: "torch.dtype") -> None:
    """What a quantized checkpoint stores in 16 bits, in ``dtype``: transformers leaves it as stored, and
    where it dequantizes the rest while loading (FP8 and MXFP4 without a GPU that has such arithmetic), two
    dtypes would meet."""
    import torch

    for parameter in model.parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.to(dtype)


def model_without_weights(folder: Path, dtype: str, *, trust_remote_code: bool = False) -> "PreTrainedModel":
    """What ``load_model`` returns, with weights on the meta device. Errors: Unsupported where transformers
    cannot build it."""
    with quiet(), library_folder(folder, trust_remote_code) as seen:
        import torch
        from transformers import AutoConfig

        with refusals(str(folder), "cannot build its model"):
            config = AutoConfig.from_pretrained(
                seen, local_files_only=True, trust_remote_code=trust_remote_code
            )
            with torch.device("meta"):
                made: PreTrainedModel = auto_class(config).from_config(
                    config, dtype=torch_dtype(dtype), trust_remote_code=trust_remote_code
                )
    return made.eval()


def load_quanto(
    folder: Path, dtype: str, device: str, *, trust_remote_code: bool = False
) -> "PreTrainedModel":
    """A saved optimum-quanto model. With a ``dtype`` other than the stored one, the same integers and scales
    computed with in it.

    Does what the library's own from_pretrained does, except that scales are cast before tensors are made of
    them: in bfloat16 a 4-bit weight is turned into a kernel's own layout when it is loaded, which rounds its
    shift and cannot be undone.

    Errors: Unsupported where optimum-quanto is not installed; StepFailed where the folder's tensors are not
    those of its map.
    """
    ensure_kernel_environment()
    with quiet(), library_folder(folder, trust_remote_code) as seen:
        import torch
        from accelerate import init_empty_weights
        from transformers import AutoConfig

        try:
            from optimum.quanto import requantize
        except ImportError:
            raise Unsupported(
                f"{folder}: is an optimum-quanto model; install with: {install_command('quanto')}"
            ) from None
        with refusals(str(folder), "cannot build its model"):
            trust = {"trust_remote_code": trust_remote_code}
            config = AutoConfig.from_pretrained(seen, local_files_only=True, **trust)
            # parameters only: buffers that no file holds (rotary frequencies) stay real
            with init_empty_weights():
                model = auto_class(config).from_config(config, dtype=torch_dtype(dtype), **trust)
        try:
            mapping = read_json(folder / QUANTO_MAP)
            state = _read_state(folder, torch_dtype(dtype))
            present = set(state)
            requantize(model, state_dict=state, quantization_map=mapping, device=torch.device("cpu"))
        except (ValueError, KeyError, TypeError, OSError, RuntimeError, AttributeError) as error:
            raise StepFailed(f"{folder}: optimum-quanto cannot load it: {reason(error)}") from error
        tied_head = ties_head(model)
        if tied_head:
            model.tie_weights()
        # requantize loads with strict=False, and leaves uninitialized memory where a tensor is missing.
        tied = set(getattr(model, "_tied_weights_keys", None) or ()) if tied_head else set()
        for name in model.state_dict():
            if (
                name not in present
                and name not in tied
                and not name.endswith(("input_scale", "output_scale"))
            ):
                raise BadInput(f"{folder}: holds no weights for {name}; convert again")
        loaded: Any = model.to(device).eval()
        known = set(model.state_dict())
        loaded.unexpected = sorted(name for name in present if name not in known)
        quantized: PreTrainedModel = loaded
        return quantized


def _read_state(folder: Path, dtype: "torch.dtype") -> "dict[str, torch.Tensor]":
    """The model's tensors in ``folder``; the floating ones in ``dtype``, quantized data (also float8)
    unchanged."""
    from safetensors.torch import load_file

    state: dict[str, Any] = {}
    for path in weight_files(folder).files:
        state.update(load_file(path))
    return {
        name: tensor.to(dtype) if tensor.is_floating_point() and not name.endswith("._data") else tensor
        for name, tensor in state.items()
    }


def load_bitsandbytes(
    folder: Path, dtype: str, device: str, exact: bool = False, *, trust_remote_code: bool = False
) -> "PreTrainedModel":
    """A saved bitsandbytes model, computing in ``dtype``. Errors: Unsupported where bitsandbytes is not
    installed."""
    model = load_model(folder, dtype, device, trust_remote_code=trust_remote_code, device_map={"": device})
    bitsandbytes_compute_in(model, torch_dtype(dtype), exact)
    return model


def bitsandbytes_compute_in(model: "torch.nn.Module", dtype: "torch.dtype", exact: bool = False) -> None:
    """4-bit layers dequantize to ``dtype`` and multiply in it, and unquantized layers have it, whatever the
    folder was made with.

    In float32 the CPU kernel that multiplies in bfloat16 is disabled as well: it exists only where the
    processor has AVX512-BF16, with it, the same artifact produces different numbers on different machines.

    On a CPU, rows that are not a whole number of blocks are dequantized flat (``dequantize_flat``).

    On a CPU, the int8 layers of bitsandbytes 0.50.2 fail at inputs of more than three axes (DeepSeek's latent
    attention): theirs are given as rows.

    ``exact``: int8 layers treat every activation as they treat outliers, in ``dtype`` instead of rounded to 8
    bits.
    """
    import bitsandbytes
    import torch

    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
        if isinstance(module, bitsandbytes.nn.Linear8bitLt):
            module.forward = partial(_forward_rows, module)  # type: ignore[method-assign]
            if exact:
                module.state.threshold = EVERY_ACTIVATION
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.compute_dtype, module.compute_type_is_set = dtype, True
            state = getattr(module.weight, "quant_state", None)
            if state is not None:
                state.dtype = dtype
            if dtype == torch.float32:
                module.support_avx512bf16_for_cpu = False
            if state is not None and state.shape[-1] % state.blocksize and module.weight.device.type == "cpu":
                module.forward = partial(_forward_flat, module)  # type: ignore[method-assign]


def torchao_compute_in(model: "torch.nn.Module", dtype: "torch.dtype") -> None:
    """Unquantized parameters in ``dtype``, and quantized ones as if made of it: where a scale belongs to a
    group, torchao unpacks to the dtype that the file names, and rounds to it."""
    import torch
    from torchao.quantization import Int8Tensor

    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(parameter.data, Int8Tensor):
                w: Any = parameter.data
                exact = Int8Tensor(w.qdata, w.scale, w.block_size, dtype, zero_point=w.zero_point)
                setattr(module, name, torch.nn.Parameter(exact, requires_grad=False))
            elif parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)


def dequantize_flat(packed: "torch.Tensor", state: Any) -> "torch.Tensor":
    """A weight in bitsandbytes' 4 bits, by its own kernel, as one long row.

    Blocks run through a tensor row after row; the CPU kernel of bitsandbytes 0.50.2 for AVX-512 begins a new
    one with every row, so that where rows are not a whole number of blocks it scales weights by other blocks'
    maxima (96 columns in blocks of 64: an error twice that of the quantization).
    """
    import bitsandbytes.functional as functional
    import torch

    flat = copy.copy(state)
    flat.shape = torch.Size((1, state.shape.numel()))
    return functional.dequantize_4bit(packed, flat).reshape(state.shape)


def _forward_flat(module: Any, x: "torch.Tensor") -> "torch.Tensor":
    """What Linear4bit computes where its kernels are right: dequantize, multiply in the compute dtype."""
    import torch

    weight = dequantize_flat(module.weight.data, module.weight.quant_state).to(module.compute_dtype)
    bias = None if module.bias is None else module.bias.to(module.compute_dtype)
    return torch.nn.functional.linear(x.to(module.compute_dtype), weight, bias).to(x.dtype)


def _forward_rows(module: Any, x: "torch.Tensor") -> "torch.Tensor":
    """What Linear8bitLt computes, of an input with any number of axes."""
    rows = x.reshape(-1, x.shape[-1]) if x.ndim > 3 else x
    out: torch.Tensor = type(module).forward(module, rows)
    return out.reshape(*x.shape[:-1], out.shape[-1])


def load_compressed_tensors(
    folder: Path, dtype: str, device: str, *, trust_remote_code: bool = False
) -> "PreTrainedModel":
    """A compressed-tensors checkpoint with its weights unpacked; its rounding of activations stays.

    The library unpacks in a hook of the whole model's forward, which a forward of only its body would skip.

    Errors: Unsupported where compressed-tensors is not installed.
    """
    model: Any = load_model(folder, dtype, device, trust_remote_code=trust_remote_code)
    if hasattr(model, "ct_decompress_hook"):
        with quiet():
            model.hf_quantizer.compressor.decompress_model(model)
        unquantized_in(model, torch_dtype(dtype))  # weights of 4-bit floats come in bfloat16
    loaded: PreTrainedModel = model
    return loaded
