"""vLLM as a runtime: what it serves from a Hugging Face folder, quantized or not.

It tells the log-probabilities of the text's own tokens (``prompt_logprobs``), not whole distributions:
perplexity and tasks can be measured with it, divergence cannot.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from quantize.calibration.windows import context_length
from quantize.checkpoint.library_folder import library_folder
from quantize.errors import BadInput, StepFailed, Unsupported, first_line
from quantize.hf.load import read_config, storage_format
from quantize.recipe import Recipe, RunOptions
from quantize.runtimes.base import Consume, FolderRuntime
from quantize.sources.hub import resolve_folder

KV_CACHE_GIB = "1"  # on a CPU, where nothing else is said


class VllmRuntime(FolderRuntime):
    name: ClassVar[str] = "vllm"
    gives_logits: ClassVar[bool] = False

    def __init__(
        self,
        path: Path | str,
        run: RunOptions,
        *,
        load_as: Recipe | None = None,
        exact: bool = False,
        context: int = 0,
    ) -> None:
        """Errors: Unsupported where vLLM is not installed or does not know the model; BadInput for
        ``load_as``."""
        if load_as is not None:
            raise BadInput(
                f"{path}: vLLM opens what is stored; it cannot quantize while loading to {load_as.short}"
            )
        for name, value in (
            ("VLLM_CPU_KVCACHE_SPACE", KV_CACHE_GIB),
            ("VLLM_LOGGING_LEVEL", "ERROR"),
            ("VLLM_LOGGING_STREAM", "ext://sys.stderr"),
            ("VLLM_ENABLE_V1_MULTIPROCESSING", "0"),
            (
                "VLLM_ALLOW_LONG_MAX_MODEL_LEN",
                "1",
            ),  # room for the token that must be generated after a full window
        ):
            os.environ.setdefault(name, value)
        try:
            from vllm import LLM
        except ImportError as error:
            raise Unsupported(
                f"--runtime vllm: vLLM is not installed here ({error}); see docs/measuring.md"
            ) from None
        self.folder, _ = resolve_folder(str(path), code=run.trust_remote_code)
        config = read_config(self.folder)
        self.format = storage_format(self.folder, config)
        self.vocabulary = int(
            config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size") or 0
        )
        own = context_length(config)
        self.context = own or context or 4096
        on_cpu = not run.resolved_device.startswith("cuda")
        self._dtype = (
            run.dtype if run.dtype != "auto" else "float32" if on_cpu and self.format == "dense" else "auto"
        )
        try:
            with library_folder(self.folder, run.trust_remote_code) as seen:
                self._llm: Any = LLM(
                    model=str(seen),
                    dtype=self._dtype,
                    max_model_len=self.context + 2,
                    enforce_eager=True,
                    skip_tokenizer_init=True,
                    seed=0,
                    trust_remote_code=run.trust_remote_code,
                )
        except (ValueError, RuntimeError, NotImplementedError, OSError) as error:
            raise Unsupported(f"{path}: vLLM cannot open it: {first_line(error)}") from error
        self._run = run

    def token_scores(
        self, rows: Sequence[Sequence[int]], firsts: Sequence[int]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        from vllm import SamplingParams

        for row in rows:
            self.check_rows(np.asarray([row[:-1]], np.int64))
        outputs = self._generate(
            [list(map(int, row)) for row in rows], SamplingParams(max_tokens=1, prompt_logprobs=0, **GREEDY)
        )
        found = []
        for row, first, output in zip(rows, firsts, outputs, strict=True):
            known = [output.prompt_logprobs[i][int(row[i])] for i in range(first, len(row))]
            found.append(
                (
                    np.array([k.logprob for k in known], np.float64),
                    np.array([k.rank for k in known], np.int64),
                )
            )
        return found

    def generate(self, ids: Sequence[int], tokens: int) -> list[int]:
        from vllm import SamplingParams

        (output,) = self._generate(
            [list(map(int, ids))], SamplingParams(max_tokens=tokens, ignore_eos=True, **GREEDY)
        )
        return list(output.outputs[0].token_ids)

    def _generate(self, prompts: list[list[int]], parameters: Any) -> list[Any]:
        try:
            outputs: list[Any] = self._llm.generate(
                [{"prompt_token_ids": ids} for ids in prompts], parameters, use_tqdm=False
            )
        except (ValueError, RuntimeError) as error:
            raise StepFailed(f"{self.folder}: vLLM failed: {first_line(error)}") from error
        return outputs

    def logits(self, rows: np.ndarray, first: int, consume: Consume) -> None:
        raise Unsupported("vLLM returns only the log-probabilities of the text's own tokens")

    def start(self, ids: Sequence[int]) -> np.ndarray:
        raise Unsupported("vLLM returns only the log-probabilities of the text's own tokens")

    def step(self, token: int) -> np.ndarray:
        raise Unsupported("vLLM returns only the log-probabilities of the text's own tokens")

    def describe(self) -> dict[str, Any]:
        import torch
        import vllm

        return {
            "backend": "vllm",
            "version": vllm.__version__,
            "torch": torch.__version__,
            "format": self.format,
            "dtype": str(self._llm.llm_engine.model_config.dtype).removeprefix("torch."),
            "device": self._run.resolved_device,
            "threads": self._run.resolved_threads,
        }

    def close(self) -> None:
        import gc

        self.__dict__.pop("_llm", None)
        gc.collect()


GREEDY: dict[str, Any] = {"temperature": 0.0, "detokenize": False}
