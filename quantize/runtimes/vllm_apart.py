"""vLLM in a process of its own, started with the Python that has it: requests and answers are JSON lines,
logits come through a file. What it prints goes into a log, whose last lines are shown where it ends."""

import contextlib
import json
import os
import select
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

from quantize.engines.isolated.call import IDLE_SECONDS, computed_s, engine_environment, last_words
from quantize.engines.isolated.known import isolated_engine
from quantize.errors import StepFailed, Unsupported
from quantize.process import tied_command
from quantize.recipe import RunOptions
from quantize.runtimes.vllm_place import ENGINE, Place
from quantize.terminal import printable

LOG, LOGITS = "vllm.log", "logits.f32"
_LOOK_SECONDS = 1.0


class VllmProcess:
    """``folder``: for its log and logits; the caller removes it. Close it."""

    def __init__(self, place: Place, run: RunOptions, folder: Path, idle_seconds: float = IDLE_SECONDS):
        self._folder, self._idle_seconds = folder, idle_seconds
        self._held = contextlib.ExitStack()
        if place.environment is not None:
            self._held.enter_context(place.environment.in_use())
        answers, theirs = os.pipe()
        self._answers = self._held.enter_context(os.fdopen(answers, "rb", buffering=0))
        self._pending = b""
        command = tied_command(
            str(place.python), "-I", str(isolated_engine(ENGINE).worker), str(theirs), str(folder)
        )
        log = self._held.enter_context((folder / LOG).open("wb"))
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(theirs,),
                env=engine_environment(run),
                cwd=folder,
            )
        except OSError as error:
            self._held.close()
            raise StepFailed(f"vLLM: {place.python} cannot be started: {error.strerror}") from None
        finally:
            os.close(theirs)

    def ask(self, task: str, **request: Any) -> dict[str, Any]:
        """Errors: Unsupported where vLLM refuses it; StepFailed where it fails, ends, or neither says nor
        computes anything."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"task": task, **request}).encode() + b"\n")
            self._process.stdin.flush()
            answer = json.loads(self._line())
        except OSError:
            raise self._ended() from None
        except ValueError:
            self.close()
            raise StepFailed("vLLM answers what is no JSON") from None
        except BaseException:
            self.close()
            raise
        if not isinstance(answer, dict):
            raise StepFailed("vLLM answers what is no JSON object")
        if "refused" in answer:
            raise Unsupported(f"vLLM refuses it: {printable(answer['refused'], 400)}")
        if "failed" in answer:
            raise StepFailed(f"vLLM failed: {printable(answer['failed'], 400)}")
        return answer

    def logits(self, row: list[int], first: int) -> np.ndarray:
        """float32 (positions, vocabulary) of a row from ``first`` on."""
        shape = self.ask("logits", row=row, first=first)["shape"]
        return np.fromfile(self._folder / LOGITS, np.float32).reshape(shape)

    def _line(self) -> bytes:
        before, since = -1.0, time.monotonic()
        while b"\n" not in self._pending:
            if select.select([self._answers], [], [], _LOOK_SECONDS)[0]:
                found = os.read(self._answers.fileno(), 1 << 20)
                if not found:
                    raise self._ended()
                self._pending += found
                continue
            now = computed_s(self._process.pid) + (self._folder / LOG).stat().st_size
            if now > before + 0.01:
                before, since = now, time.monotonic()
            elif time.monotonic() - since > self._idle_seconds:
                raise StepFailed(
                    f"vLLM neither computed nor said anything for {self._idle_seconds:g} s and was ended; "
                    f"its last lines: {last_words(self._folder / LOG)}"
                )
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _ended(self) -> StepFailed:
        code = self._process.wait()
        self.close()
        how = f"exit code {code}" if code >= 0 else f"signal {-code}"
        return StepFailed(f"vLLM ended ({how}); its last lines: {last_words(self._folder / LOG)}")

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self._held.close()
