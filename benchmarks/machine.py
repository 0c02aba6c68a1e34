"""The state of the machine beside a measured speed: what it is, how busy it is, how fast its cores run right
now."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any


def describe_machine() -> dict[str, Any]:
    """CPU model, cores, frequency in MHz (mean over cores, as the kernel says), governor, load average,
    memory, versions."""
    import psutil

    memory = psutil.virtual_memory()
    return {
        "cpu": cpu_model(),
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cores_total": os.cpu_count(),
        "frequency_mhz": frequency_mhz(),
        "governor": _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "load_average": load_average(),
        "memory_total_bytes": memory.total,
        "memory_available_bytes": memory.available,
        "system": platform.platform(),
        "python": platform.python_version(),
        "quantwright": metadata.version("quantwright"),
    }


def cpu_model() -> str:
    for line in (_read(Path("/proc/cpuinfo")) or "").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def frequency_mhz() -> float | None:
    values = [
        float(line.partition(":")[2])
        for line in (_read(Path("/proc/cpuinfo")) or "").splitlines()
        if line.startswith("cpu MHz")
    ]
    return round(sum(values) / len(values), 1) if values else None


def load_average() -> float | None:
    """Processes that ran or wanted to, averaged over the last minute; None where the system keeps no such
    count."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
