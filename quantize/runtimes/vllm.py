"""vLLM as a runtime: what it serves from a Hugging Face folder, quantized or not.

It runs in a process and a Python of its own (``vllm_place``, ``vllm_apart``). Texts are scored by what it
tells of their own tokens (``prompt_logprobs``), many at a time; whole distributions, where they are wanted,
are those that the model's head computes, one text at a time.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from quantize.calibration.windows import context_length
from quantize.checkpoint.library_folder import library_folder
from quantize.errors import BadInput, QuantwrightError, StepFailed, Unsupported
from quantize.hf.load import read_config, storage_format
from quantize.recipe import Recipe, RunOptions
from quantize.runtimes.base import Consume, FolderRuntime
from quantize.runtimes.vllm_apart import VllmProcess
from quantize.runtimes.vllm_place import needed_vllm
from quantize.sources.hub import resolve_folder
from quantize.staging import temporary_folder

#: scales of these are stored in float16, and vLLM holds them in the model's dtype: bfloat16 rounds them
HALF = ("gptq", "awq")


class VllmRuntime(FolderRuntime):
    name: ClassVar[str] = "vllm"

    def __init__(
        self,
        path: Path | str,
        run: RunOptions,
        *,
        load_as: Recipe | None = None,
        exact: bool = False,
        context: int = 0,
    ) -> None:
        """``exact``: on a processor in float32 where vLLM's kernels of the format compute in it, else in
        float16; else as vLLM is served, but for folders that are not quantized: those in float32.

        Errors: Unsupported where vLLM is not installed or does not know the model; StepFailed where it fails
        over it; BadInput for ``load_as``."""
        if load_as is not None:
            raise BadInput(
                f"{path}: vLLM opens what is stored; it cannot quantize while loading to {load_as.short}"
            )
        gpu = run.resolved_device.startswith("cuda")
        self._place = needed_vllm("--runtime vllm", gpu)
        self.folder, _ = resolve_folder(str(path), code=run.trust_remote_code)
        config = read_config(self.folder)
        self.format = storage_format(self.folder, config)
        self.vocabulary = int(
            config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size") or 0
        )
        own = context_length(config)
        self.context = min(own, context) if own and context else own or context or 4096
        self._run = run
        self._scratch = temporary_folder("vllm", run.scratch)
        self._work = self._scratch.__enter__()
        try:
            self._process, self.opened = self._open(path, self._dtypes(exact, gpu), gpu)
        except BaseException:
            self._scratch.__exit__(None, None, None)
            raise
        self.gives_logits = bool(self.opened["logits"])

    def _dtypes(self, exact: bool, gpu: bool) -> tuple[str, ...]:
        """To be tried in turn."""
        if self._run.dtype != "auto":
            return (self._run.dtype,)
        if exact:
            return ("float16", "auto") if self.format in HALF else ("float32", "auto")
        return ("float32",) if self.format == "dense" and not gpu else ("auto",)

    def _open(self, path: Path | str, dtypes: Sequence[str], gpu: bool) -> tuple[VllmProcess, dict[str, Any]]:
        """In the first of ``dtypes`` that vLLM takes, each tried by a process of its own.

        Errors: those of the first."""
        first: QuantwrightError | None = None
        for dtype in dtypes:
            process = VllmProcess(self._place, self._run, self._work)
            try:
                with library_folder(self.folder, self._run.trust_remote_code) as seen:
                    opened = process.ask(
                        "open",
                        model=str(Path(seen).absolute()),
                        dtype=dtype,
                        context=self.context,
                        trust_remote_code=self._run.trust_remote_code,
                    )
                return process, opened
            except (Unsupported, StepFailed) as error:
                process.close()
                first = first or type(error)(f"{path}: {error}")
            except BaseException:
                process.close()
                raise
        assert first is not None
        raise first

    @property
    def by_scores(self) -> bool:
        return True

    def token_scores(
        self, rows: Sequence[Sequence[int]], firsts: Sequence[int]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        for row in rows:
            self.check_rows(np.asarray([row[:-1]], np.int64))
        plain = [list(map(int, row)) for row in rows]
        answer = self._process.ask("scores", rows=plain, firsts=list(map(int, firsts)))
        return [
            (np.array(log_probs, np.float64), np.array(ranks, np.int64))
            for log_probs, ranks in answer["scores"]
        ]

    def generate(self, ids: Sequence[int], tokens: int) -> list[int]:
        return list(self._process.ask("generate", ids=list(map(int, ids)), tokens=tokens)["ids"])

    def logits(self, rows: np.ndarray, first: int, consume: Consume) -> None:
        if not self.gives_logits:
            raise Unsupported("this vLLM returns only the log-probabilities of the text's own tokens")
        self.check_rows(rows)
        for number, row in enumerate(rows):
            consume(number, first, self._process.logits(row.tolist(), first)[:, : self.vocabulary or None])

    def start(self, ids: Sequence[int]) -> np.ndarray:
        raise Unsupported("vLLM keeps its own cache: it continues texts whole, not token by token")

    def step(self, token: int) -> np.ndarray:
        raise Unsupported("vLLM keeps its own cache: it continues texts whole, not token by token")

    def describe(self) -> dict[str, Any]:
        return {
            "backend": "vllm",
            "version": self.opened["version"],
            "torch": self.opened["torch"],
            "format": self.format,
            "dtype": self.opened["dtype"],
            "device": self._run.resolved_device,
            "threads": self._run.resolved_threads,
        }

    def close(self) -> None:
        self._process.close()
        self._scratch.__exit__(None, None, None)
