"""Helpers that the benchmarks share."""

from __future__ import annotations

import platform
import resource
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def peak_memory_mb() -> float:
    """Peak memory of this process so far.

    On Linux, `ru_maxrss` includes what the parent held when it started this process. VmHWM does
    not.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
