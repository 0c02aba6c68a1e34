"""vLLM, run by a Python that has it, for ``quantize.runtimes.vllm``: python -I vllm_worker.py FD FOLDER.

It imports the standard library and vLLM (and torch, which vLLM needs) only. Requests come one JSON document a
line on the standard input; each answer is a JSON line on the file descriptor FD, and logits go as float32
into FOLDER/logits.f32. What it prints is its log.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

#: nothing is reported to anyone, the engine runs in this process, and threads are those that it is given
SETTINGS = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # room for the token that must be generated after a full window
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
}
#: where nothing else is said
DEFAULTS = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
GREEDY: dict[str, Any] = {"temperature": 0.0, "detokenize": False}
#: what vLLM raises where it does not know a model, a format or a setting; anything else is a failure
REFUSALS = (ValueError, NotImplementedError, OSError, ImportError)


class Unseen(RuntimeError):
    """What the head computed is not what vLLM says of the text."""


class Server:
    """One model. Each public method answers the request of its name."""

    def __init__(self, folder: Path):
        self._logits = folder / "logits.f32"
        self._kept: list[Any] = []
        self._keep = False
        self._llm: Any = None

    def open(
        self, model: str, dtype: str, context: int, trust_remote_code: bool, watch: bool = True, **more: Any
    ) -> dict[str, Any]:
        """``watch``: for logits; without it nothing of ours is in what vLLM computes. ``more``: settings of
        vLLM's own."""
        begin = time.perf_counter()
        import torch
        import vllm

        imported, held = time.perf_counter(), memory_bytes("VmRSS")
        self._llm = vllm.LLM(
            model=model,
            dtype=dtype,
            max_model_len=context + 2,
            enable_prefix_caching=False,  # its positions would have no logits, and take no time
            skip_tokenizer_init=True,
            disable_log_stats=True,
            seed=0,
            trust_remote_code=trust_remote_code,
            **{"enforce_eager": True, **more},
        )
        loaded, engine = time.perf_counter(), self._llm.llm_engine
        config = engine.model_config
        return {
            "version": vllm.__version__,
            "torch": torch.__version__,
            "dtype": str(config.dtype).removeprefix("torch."),
            "quantization": str(config.quantization or ""),
            "device": str(engine.vllm_config.device_config.device_type),
            "logits": watch and self._watch(),
            "import_seconds": imported - begin,
            "load_seconds": loaded - imported,
            "rss_before_load_bytes": held,
            "kv_cache_bytes": getattr(engine.vllm_config.cache_config, "kv_cache_memory_bytes", None),
        }

    def _watch(self) -> bool:
        """Keep what the model's head computes; whether that can be seen, tried on two tokens.

        Errors: those of computing them: vLLM may open what its kernels do not compute."""

        def watch(model: Any) -> None:
            compute = model.compute_logits

            def kept(*arguments: Any, **named: Any) -> Any:
                logits = compute(*arguments, **named)
                if self._keep and logits is not None:
                    self._kept.append(logits.detach().float().cpu().clone())
                return logits

            model.compute_logits = kept

        try:
            self._llm.apply_model(watch)
        except Exception as error:
            print(f"the model cannot be reached: {type(error).__name__}: {error}", flush=True)
        try:
            self._all([0, 1])
        except Unseen as error:
            print(f"logits cannot be seen: {error}", flush=True)
            return False
        return True

    def _all(self, ids: list[int]) -> Any:
        """Logits of all positions of one row (length, vocabulary). vLLM takes a row in pieces: of each it
        computes the last position's logits, to choose a token, then, as ``prompt_logprobs`` are asked for,
        those of all its positions whose next token is known. What it says of the row's own tokens is held
        against them."""
        import torch

        self._kept, self._keep = [], True
        try:
            (output,) = self._generate([ids], 1, prompt_logprobs=0)
        finally:
            self._keep = False
        pieces, self._kept = self._kept, []
        logits = torch.cat([*pieces[1::2], *pieces[0::2][-1:]]) if pieces else torch.empty(0)
        if len(logits) != len(ids):
            raise Unseen(f"{len(ids)} tokens gave logits of {[len(piece) for piece in pieces]}")
        for position, token in enumerate(ids[1:]):
            said = output.prompt_logprobs[position + 1][token].logprob
            seen = float(torch.log_softmax(logits[position], -1)[token])
            if abs(said - seen) > 1e-3 * max(1.0, abs(said)):
                raise Unseen(f"position {position}: prompt_logprobs says {said}, the logits {seen}")
        return logits

    def logits(self, row: list[int], first: int) -> dict[str, Any]:
        logits = self._all(row)[first:]
        logits.numpy().tofile(self._logits)
        return {"shape": list(logits.shape)}

    def scores(self, rows: list[list[int]], firsts: list[int]) -> dict[str, Any]:
        found = []
        for row, first, output in zip(rows, firsts, self._generate(rows, 1, prompt_logprobs=0), strict=True):
            known = [output.prompt_logprobs[i][row[i]] for i in range(first, len(row))]
            found.append([[each.logprob for each in known], [each.rank for each in known]])
        return {"scores": found}

    def generate(self, ids: list[int], tokens: int) -> dict[str, Any]:
        (output,) = self._generate([ids], tokens, ignore_eos=True)
        return {"ids": list(output.outputs[0].token_ids)}

    def speed(
        self, rows: list[list[int]], prefill: int, decodes: list[list[int]], repetitions: int
    ) -> dict[str, Any]:
        """Seconds, by this process's clock, of all ``rows`` (of equal length) at once: of their first
        ``prefill`` tokens, and of each step of ``decodes`` (tokens before, steps). One of each that
        is not counted comes first."""
        begin = time.perf_counter()
        self._timed(rows, prefill, 1)
        for depth, steps in decodes:
            self._decode(rows, depth, min(steps, 8))
        warm_up = time.perf_counter() - begin
        prefills, firsts = [], []
        taken: list[list[list[float]]] = [[] for _ in decodes]
        for _ in range(repetitions):
            accepted, (computed,) = self._timed(rows, prefill, 1)
            prefills.append(computed)
            firsts.append(accepted + computed)
            for (depth, steps), each in zip(decodes, taken, strict=True):
                each.append(self._decode(rows, depth, steps))
        return {
            "warm_up_seconds": warm_up,
            "prefill_seconds": prefills,
            "first_token_seconds": firsts,
            "step_seconds": taken,
            "peak_rss_bytes": memory_bytes("VmHWM"),
        }

    def _decode(self, rows: list[list[int]], depth: int, steps: int) -> list[float]:
        """From an empty cache the first step takes the row's first token, as any other takes the one before
        it; else what was there before is taken in first, and not counted."""
        if not depth:
            return self._timed(rows, 1, steps)[1]
        return self._timed(rows, depth, steps + 1)[1][1:]

    def _timed(self, rows: list[list[int]], length: int, tokens: int) -> tuple[float, list[float]]:
        """Seconds until vLLM has accepted the first ``length`` ids of each row, then until each row has its
        next token, ``tokens`` times.

        Errors: ValueError where vLLM does not keep the rows in step: it had no room for them all."""
        from vllm import SamplingParams

        engine = self._llm.llm_engine
        parameters = SamplingParams(max_tokens=tokens, ignore_eos=True, **GREEDY)
        begin = time.perf_counter()
        for number, row in enumerate(rows):
            engine.add_request(str(number), {"prompt_token_ids": row[:length]}, parameters)
        before = time.perf_counter()
        accepted, seconds = before - begin, []
        while engine.has_unfinished_requests():
            made = [len(output.outputs[0].token_ids) for output in engine.step()]
            if not made:  # it has begun the next step before it gives out this one's
                continue
            now = time.perf_counter()
            seconds.append(now - before)
            before = now
            if made != [len(seconds)] * len(rows):
                raise ValueError(
                    f"{len(rows)} sequences of {length + tokens} tokens are not computed at once: vLLM's "
                    "cache is too small for them (VLLM_CPU_KVCACHE_SPACE, in GiB)"
                )
        if len(seconds) != tokens:
            raise ValueError(f"{tokens} tokens were asked for, and {len(seconds)} came")
        return accepted, seconds

    def _generate(self, rows: list[list[int]], tokens: int, **more: Any) -> list[Any]:
        from vllm import SamplingParams

        parameters = SamplingParams(max_tokens=tokens, **GREEDY, **more)
        prompts = [{"prompt_token_ids": ids} for ids in rows]
        outputs: list[Any] = self._llm.generate(prompts, parameters, use_tqdm=False)
        return outputs


def memory_bytes(what: str) -> int:
    """``VmRSS`` or ``VmHWM`` (the most there was) of this process and those that it started and that are
    there; 0 where the system does not say."""
    import psutil

    total, this = 0, psutil.Process()
    for process in (this, *this.children(recursive=True)):
        try:
            with open(f"/proc/{process.pid}/status", encoding="ascii", errors="replace") as status:
                total += sum(int(line.split()[1]) << 10 for line in status if line.startswith(f"{what}:"))
        except OSError:
            continue
    return total


def main() -> None:
    os.environ.update(SETTINGS)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    server = Server(Path(sys.argv[2]))
    with open(int(sys.argv[1]), "w", encoding="utf-8") as answers:
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer = getattr(server, request.pop("task"))(**request)
            except Exception as error:
                words = [word.strip() for word in str(error).splitlines() if word.strip()]
                kind = "refused" if isinstance(error, REFUSALS) else "failed"
                answer = {kind: f"{type(error).__name__}: {' '.join(words[:4]) or 'no word'}"}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
