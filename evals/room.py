"""Whether a second set of weights fits beside what is held."""

import psutil

from quantize.errors import StepFailed
from quantize.recipe import RunOptions
from quantize.units import spell_gib


def check_room(more: int, run: RunOptions) -> None:
    """Errors: StepFailed where ``more`` bytes exceed the memory that is free, or, with what is held, what
    ``run`` allows."""
    process = psutil.Process()
    held = sum(_held(one) for one in (process, *process.children()))  # llama.cpp's models lie in children
    if more > min(psutil.virtual_memory().available, (run.memory_bytes or 1 << 62) - held):
        raise StepFailed(f"needs {spell_gib(more)} more memory than is free")


def _held(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:  # it has just ended
        return 0
