"""Run what a model wrote against its tests: the ``code_eval`` metric that lm-eval's code tasks ask for.

lm-eval fetches that metric as a script from the Hub; this one needs no network and runs every candidate in
its own process, with limits on time, memory and file size, an empty folder and no environment. It is not a
sandbox: the code runs with the user's rights. Source of the estimator: M. Chen et al., "Evaluating Large
Language Models Trained on Code" (2021), section 2.1.
"""

import contextlib
import resource
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import comb
from typing import Any
from unittest import mock

from quantize.process import isolated_command
from quantize.staging import temporary_folder

SECONDS = 3.0  # as Hugging Face's code_eval
MEMORY_BYTES = 4 << 30
FILE_BYTES = 16 << 20


def passes(program: str) -> bool:
    """Whether ``program`` ends without an error, in time."""

    def limit() -> None:
        for what, most in (
            (resource.RLIMIT_AS, MEMORY_BYTES),
            (resource.RLIMIT_FSIZE, FILE_BYTES),
            (resource.RLIMIT_CPU, int(SECONDS) + 1),
        ):
            resource.setrlimit(what, (most, most))

    with temporary_folder("code") as folder:
        try:
            done = subprocess.run(
                isolated_command(program),
                cwd=folder,
                env={},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=SECONDS,
                check=False,
                preexec_fn=limit,
                start_new_session=True,
            )
        except (subprocess.TimeoutExpired, ValueError):  # ValueError: a null byte in the program
            return False
        return done.returncode == 0


class CodeEval:
    """What ``evaluate.load("code_eval")`` returns, as far as lm-eval uses it."""

    def compute(
        self,
        references: Sequence[str],
        predictions: Sequence[Sequence[str]],
        k: Sequence[int] = (1,),
        **_: Any,
    ) -> tuple[dict[str, float], dict[int, list[bool]]]:
        """``references``: test code of each problem, ``predictions``: its candidates -> (pass@k by name,
        outcomes by problem)."""
        programs = [
            f"{candidate}\n{test}"
            for test, candidates in zip(references, predictions, strict=True)
            for candidate in candidates
        ]
        with ThreadPoolExecutor() as pool:
            outcomes = iter(list(pool.map(passes, programs)))
        results = {i: [next(outcomes) for _ in candidates] for i, candidates in enumerate(predictions)}
        return {
            f"pass@{n}": sum(_estimate(len(r), sum(r), n) for r in results.values()) / len(results)
            for n in k
            if all(len(r) >= n for r in results.values())
        }, results


def _estimate(samples: int, passed: int, k: int) -> float:
    """Probability that one of ``k`` of the samples passes."""
    return 1.0 - comb(samples - passed, k) / comb(samples, k)


@contextlib.contextmanager
def code_eval_at_hand() -> Iterator[None]:
    """Inside, ``evaluate.load("code_eval")`` returns ``CodeEval``; other metrics are loaded as usual."""
    import evaluate

    load = evaluate.load

    def ours_or_theirs(path: str, *args: Any, **kwargs: Any) -> Any:
        return CodeEval() if path == "code_eval" else load(path, *args, **kwargs)

    with mock.patch.object(evaluate, "load", ours_or_theirs):
        yield
