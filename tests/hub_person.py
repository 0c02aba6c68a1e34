"""Somebody with a cache of its own, who types commands against the Hub on the loopback device."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loopback_hub import LoopbackHub

QUANTWRIGHT = (sys.executable, "-m", "quantize.cli")


class Person:
    def __init__(self, hub: LoopbackHub, home: Path):
        self.home = home
        home.mkdir()
        self.environment = {**os.environ, **hub.environment(home / "hf"), "HF_TOKEN": "hf_x"}
        self.environment |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}

    def types(self, *command: str) -> str:
        """What it prints on stdout."""
        done = self._run(command)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def quantwright(self, *words: object) -> str:
        return self.types(*QUANTWRIGHT, *map(str, words))

    def asks(self, *words: object) -> Any:
        """The command's JSON document."""
        return json.loads(self.quantwright(*words, "--json").splitlines()[-1])

    def fails(self, *words: object, ends: int = 1) -> str:
        """The last line on stderr; ``ends``: the exit code."""
        done = self._run([*QUANTWRIGHT, *map(str, words)])
        assert done.returncode == ends, f"{words}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stderr.strip().splitlines()[-1]

    def _run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, capture_output=True, text=True, cwd=self.home, env=self.environment, timeout=1200
        )

    def pulls(self, repo: str, folder: Path) -> None:
        code = "import sys, huggingface_hub as h; h.snapshot_download(sys.argv[1], local_dir=sys.argv[2])"
        self.types(sys.executable, "-c", code, repo, str(folder))
