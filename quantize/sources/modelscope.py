"""Models of ModelScope, ``modelscope:org/name[@revision]``, fetched by its own library (extra
``modelscope``).

MODELSCOPE_CACHE, MODELSCOPE_ENDPOINT and MODELSCOPE_API_TOKEN mean what they mean to that library.
"""

import errno
import re
from collections.abc import Sequence
from pathlib import Path

from quantize.errors import BadInput, StepFailed, first_line
from quantize.packages import install_command

PREFIX = "modelscope:"
NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def snapshot(model: str, wanted: Sequence[str], unwanted: Sequence[str]) -> tuple[Path, str]:
    """-> (folder, the branch or tag that was asked for; the manifest's source digest identifies its
    contents).

    Errors: BadInput; StepFailed where ModelScope cannot be reached.
    """
    inner = model.removeprefix(PREFIX)
    if not NAME.fullmatch(inner):
        raise BadInput(f"{model}: expected {PREFIX}org/name[@revision]")
    try:
        from modelscope.hub.snapshot_download import snapshot_download
    except ImportError:
        raise BadInput(
            f"{model}: needs ModelScope's library; install with: {install_command('modelscope')}"
        ) from None
    name, _, revision = inner.partition("@")
    try:
        folder = snapshot_download(
            name, revision=revision or None, allow_patterns=list(wanted), ignore_patterns=list(unwanted)
        )
    except OSError as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        line = first_line(error)
        if status in (401, 403):
            raise BadInput(f"{model}: not public ({line}); set MODELSCOPE_API_TOKEN") from None
        if status is not None and 400 <= status < 500 and status != 429:
            raise BadInput(f"{model}: no such model or revision on ModelScope ({line})") from None
        if error.errno == errno.ENOSPC:
            raise StepFailed(
                f"{model}: the disk is full; free some space, or set MODELSCOPE_CACHE to a larger disk"
            ) from None
        raise StepFailed(
            f"{model}: ModelScope cannot be reached ({line}); connect, or give a local path"
        ) from None
    return Path(folder), revision or "master"
