"""transformers as a runtime: dense, GPTQ, AWQ, quanto, bitsandbytes, torchao and compressed-tensors folders;
on-the-fly quantization.

Arithmetic. On a CPU everything is computed in float32, whatever dtype the folder names: the baseline then has
no rounding of its own, so a comparison shows only what the format loses, and on processors without bfloat16
instructions it is the fastest. On a GPU the folder's own dtype is used, unless ``exact`` asks for float32.
``run.dtype`` overrides all of this.
"""

import inspect
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from quantize.errors import BadInput, Unsupported, first_line
from quantize.hf import load
from quantize.hf.products import exact_products
from quantize.methods.registry import method, stored_as
from quantize.quiet import hush, no_warnings
from quantize.recipe import Recipe, RunOptions
from quantize.runtimes.base import Consume, FolderRuntime
from quantize.sources.hub import resolve_folder

#: Most bytes of float32 logits held at a time: 256 positions of a vocabulary of 262,144.
LOGITS_BYTES = 256 * 1024 * 1024
STATIC_CACHE_TOKENS = 4096  # by default


class TransformersRuntime(FolderRuntime):
    name: ClassVar[str] = "transformers"

    def __init__(
        self,
        path: Path | str,
        run: RunOptions,
        *,
        load_as: Recipe | None = None,
        exact: bool = False,
        context: int = 0,
        model: Any = None,
    ) -> None:
        """``model``: one that was loaded from ``path`` already, on ``run.device``.

        Errors: BadInput, Unsupported and StepFailed as ``quantize.hf.load`` raises them.
        """
        self.folder, self.revision = resolve_folder(str(path), code=run.trust_remote_code)
        hush()
        self._run = run
        self._load_as = load_as
        self._device = run.resolved_device
        config = load.read_config(self.folder)
        self.format = load.storage_format(self.folder, config)
        if run.threads:
            import torch

            torch.set_num_threads(run.threads)
        if load_as is not None:
            if self.format != "dense":
                raise BadInput(
                    f"{path}: is already stored as {self.format}, so it cannot be loaded as {load_as.short}"
                )
            self.format = load_as.short
            self.model = method(load_as.method).load_as(self.folder, load_as, run, exact)
        else:
            self.model = self._open(config, exact) if model is None else model
        text = self.model.config.get_text_config()
        self.vocabulary = int(text.vocab_size)
        own = int(getattr(text, "max_position_embeddings", 0) or 0)
        self.context = own or context or 1 << 20
        accepted = inspect.signature(type(self.model).forward).parameters
        self._accepts_slice = "logits_to_keep" in accepted
        self._accepts_positions = "position_ids" in accepted
        self._cache_name = "cache_params" if "cache_params" in accepted else "past_key_values"  # Mamba's
        self._sliceable = self._accepts_slice and self.model.base_model is not self.model
        self._cache: Any = None
        self._cached_tokens = 0
        self._compiled = False
        self._wanted_context = context

    def _open(self, config: dict[str, Any], exact: bool) -> Any:
        dtype, trust = (
            load.compute_dtype(load.stored_dtype(config), self._run, exact),
            self._run.trust_remote_code,
        )
        made_by = stored_as(self.format) if self.format != "dense" else None
        if made_by is not None:
            return made_by.open(self.folder, dtype, self._device, exact, trust)
        return load.load_model(self.folder, dtype, self._device, trust_remote_code=trust)

    def logits(self, rows: np.ndarray, first: int, consume: Consume) -> None:
        import torch

        self.check_rows(rows)
        length = rows.shape[1]
        step = max(1, LOGITS_BYTES // (4 * self.vocabulary))
        # not inference_mode: quanto's 4-bit weights cannot be transposed in it
        with torch.no_grad(), exact_products():
            for row in range(rows.shape[0]):
                ids = torch.as_tensor(np.asarray(rows[row : row + 1], dtype=np.int64), device=self._device)
                body = self._body(ids) if self._sliceable else None
                if body is None:
                    whole = self._forward(input_ids=ids, use_cache=False).logits[0]
                    for begin in range(first, length, step):
                        consume(row, begin, _float32(whole[begin : min(begin + step, length)]))
                    continue
                for begin in range(first, length, step):
                    kept = torch.arange(begin, min(begin + step, length), device=self._device)
                    consume(row, begin, _float32(self._head(ids, body, kept)[0]))

    def _body(self, ids: Any) -> Any:
        with no_warnings():
            return self.model.base_model(input_ids=ids, use_cache=False)

    def _head(self, ids: Any, body: Any, kept: Any) -> Any:
        """Logits of the positions ``kept`` from the body's outputs, by the model's own forward: soft-capping,
        scaling and everything else that a family does to its logits is its own code; the body has already run
        and only returns its result."""
        base = self.model.base_model
        own = base.__dict__.get("forward")  # hooks of accelerate are set this way
        base.forward = lambda *args, **kwargs: body
        try:
            return self._forward(input_ids=ids, use_cache=False, logits_to_keep=kept).logits
        finally:
            if own is None:
                del base.forward
            else:
                base.forward = own

    def _forward(self, **inputs: Any) -> Any:
        with no_warnings():
            return self.model(**inputs)

    def start(self, ids: Sequence[int]) -> np.ndarray:
        return np.asarray(self.start_rows(np.asarray([list(ids)], dtype=np.int64))[0])

    def step(self, token: int) -> np.ndarray:
        return np.asarray(self.step_rows(np.asarray([token], dtype=np.int64))[0])

    def start_rows(self, rows: np.ndarray) -> np.ndarray:
        if rows.size == 0:
            raise BadInput("no tokens to start from; give at least one")
        self.check_rows(rows)
        self._cache = self._static_cache() if self._compiled else None
        self._cached_tokens = 0
        logits = self._advance(rows)
        if self._cache is None:  # Recurrent Gemma does not hand out the one that it makes
            from transformers import DynamicCache

            self._cache, self._cached_tokens = DynamicCache(config=self.model.config), 0
            logits = self._advance(rows)
        return logits

    def step_rows(self, tokens: np.ndarray) -> np.ndarray:
        if self._cache is None:
            raise RuntimeError("step() before start()")
        return self._advance(tokens[:, None])

    def _advance(self, rows: np.ndarray) -> np.ndarray:
        import torch

        ids = torch.as_tensor(rows, device=self._device)
        more: dict[str, Any] = {"logits_to_keep": 1} if self._accepts_slice else {}
        before, self._cached_tokens = self._cached_tokens, self._cached_tokens + rows.shape[1]
        if before and self._accepts_positions:  # as generate() does: Bamba counts from 0 again without them
            more["position_ids"] = torch.arange(before, self._cached_tokens, device=self._device)[None]
        with torch.no_grad():
            out = self._forward(input_ids=ids, use_cache=True, **{self._cache_name: self._cache}, **more)
        self._cache = getattr(out, self._cache_name, self._cache)
        return _float32(out.logits[:, -1])

    def tune(self, attention: str = "", compiled: bool = False) -> None:
        """``compiled``: torch.compile, with a cache of fixed size, so that a step has one shape."""
        if attention:
            try:
                self.model.set_attn_implementation(attention)
            except (ValueError, ImportError) as error:
                raise Unsupported(
                    f"{self.folder}: no attention called {attention!r} here: {first_line(error)}"
                ) from None
            if self.model.config._attn_implementation != attention:
                raise Unsupported(
                    f"{self.folder}: {type(self.model).__name__} has only one attention implementation"
                )
        if compiled:
            import torch

            self.model.forward = torch.compile(self.model.forward)
        self._compiled = compiled

    def _static_cache(self) -> Any:
        from transformers import StaticCache

        return StaticCache(
            config=self.model.config,
            max_cache_len=self._wanted_context or min(self.context, STATIC_CACHE_TOKENS),
        )

    def describe(self) -> dict[str, Any]:
        import torch
        import transformers

        on_gpu = self._device.startswith("cuda")
        return {
            "backend": "transformers",
            "version": transformers.__version__,
            "torch": torch.__version__,
            "format": self.format,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self._device,
            "gpu": torch.cuda.get_device_name(self._device) if on_gpu else "",
            "cpu_features": "" if on_gpu else torch.backends.cpu.get_cpu_capability(),
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "attention": getattr(self.model.config, "_attn_implementation", None) or "",
            "compiled": self._compiled,
            "kernels": self._kernels(),
        }

    def _kernels(self) -> str:
        """Class names of the layers (and of quanto's and torchao's weights) that hold quantized weights."""
        names = set()
        for module in self.model.modules():
            weight = getattr(module, "weight", None)
            if type(module).__module__.split(".")[0] in ("gptqmodel", "bitsandbytes"):
                names.add(type(module).__name__)
            elif type(module).__module__.startswith("optimum.quanto") and weight is not None:
                names.add(type(weight.data if type(weight).__name__ == "Parameter" else weight).__name__)
            elif type(weight).__module__.startswith("torchao."):
                names.add(type(weight).__name__)
        return ", ".join(sorted(names))

    def close(self) -> None:
        import gc

        self._cache = None
        self.__dict__.pop("model", None)
        gc.collect()
        if self._device.startswith("cuda"):
            import torch

            torch.cuda.empty_cache()


def skeleton(path: Path | str, run: RunOptions) -> TransformersRuntime | None:
    """A plain checkpoint without its weights: describes itself and tokenizes like the whole model, and has no
    logits. None for any other folder."""
    folder, _ = resolve_folder(str(path), code=run.trust_remote_code)
    config = load.read_config(folder)
    if load.storage_format(folder, config) != "dense":
        return None
    model = load.model_without_weights(
        folder,
        load.compute_dtype(load.stored_dtype(config), run, False),
        trust_remote_code=run.trust_remote_code,
    )
    return TransformersRuntime(folder, run, model=model)


def with_weights(folder: Path, weights: dict[str, Any], run: RunOptions) -> TransformersRuntime:
    """The folder's model with ``weights``, torch tensors by the names in its files; float32 where ``run``
    names no dtype."""
    dtype = "float32" if run.dtype == "auto" else run.dtype
    device, trust = run.resolved_device, run.trust_remote_code
    model = load.load_model(folder, dtype, device, trust_remote_code=trust, weights=weights)
    return TransformersRuntime(folder, run, model=model)


def _float32(tensor: Any) -> np.ndarray:
    values: np.ndarray = tensor.float().cpu().numpy()
    return values
