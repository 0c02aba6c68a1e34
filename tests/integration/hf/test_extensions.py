"""What libraries do when they are imported: compile, and point variables elsewhere."""

import os
import subprocess
import sys

import pytest

from quantize.hf.extensions import build_kernels


@pytest.mark.long  # imports both libraries; compiles for minutes where set-up did not
def test_kernels_that_set_up_builds_are_ready() -> None:
    results = dict(build_kernels())
    assert all(state == "ready" for state in results.values()), results


def test_the_hubs_caches_stay_where_they_are() -> None:
    pytest.importorskip("tokenicer")
    code = (
        "import os; from quantize.hf.extensions import keep_hub_caches; keep_hub_caches(); import "
        "tokenicer; print(sorted(os.environ))"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=clean, check=True
    ).stdout
    assert not [name for name in ("HF_HOME", "HF_HUB_CACHE", "TRANSFORMERS_CACHE") if name in printed]
