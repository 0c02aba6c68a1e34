"""vLLM, run by a Python that has it, for ``quantize.runtimes.vllm``: python -I vllm_worker.py FD FOLDER.

It imports the standard library and vLLM (and torch, which vLLM needs) only. Requests come one JSON document a
line on the standard input; each answer is a JSON line on the file descriptor FD, and logits go as float32
into FOLDER/logits.f32. What it prints is its log.
"""

import json
import os
import sys
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

    def open(self, model: str, dtype: str, context: int, trust_remote_code: bool) -> dict[str, Any]:
        import torch
        import vllm

        self._llm = vllm.LLM(
            model=model,
            dtype=dtype,
            max_model_len=context + 2,
            enforce_eager=True,
            enable_prefix_caching=False,  # its positions would have no logits
            skip_tokenizer_init=True,
            disable_log_stats=True,
            seed=0,
            trust_remote_code=trust_remote_code,
        )
        config = self._llm.llm_engine.model_config
        return {
            "version": vllm.__version__,
            "torch": torch.__version__,
            "dtype": str(config.dtype).removeprefix("torch."),
            "quantization": str(config.quantization or ""),
            "logits": self._watch(),
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

    def _generate(self, rows: list[list[int]], tokens: int, **more: Any) -> list[Any]:
        from vllm import SamplingParams

        parameters = SamplingParams(max_tokens=tokens, **GREEDY, **more)
        prompts = [{"prompt_token_ids": ids} for ids in rows]
        outputs: list[Any] = self._llm.generate(prompts, parameters, use_tqdm=False)
        return outputs


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
