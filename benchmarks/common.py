"""Helpers that the benchmarks share."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import resource
import time
import warnings
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def silence() -> None:
    """Silence what libraries print while they load models, in this process."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def reset_peak_memory() -> None:
    """Forget the peak so far, of this process and of its GPU, where the system can."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # the peak is then that of all runs so far
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float:
    """Peak memory of this process since it started, or since `reset_peak_memory`.

    On Linux, `ru_maxrss` includes what the parent held when it started this process. VmHWM does
    not.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def device_peak_memory_mb() -> float:
    """Peak memory on the GPU if there is one, else of the process."""
    import torch

    return (
        torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else peak_memory_mb()
    )


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """The GPU, or the processor and its fastest instructions for bfloat16."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    flags = fields.get("flags", "").split()
    known = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "avx2": "AVX2"}
    fastest = next((name for flag, name in known.items() if flag in flags), platform.machine())
    return f"{fields.get('model name', platform.processor())}, {os.cpu_count()} cores, {fastest}"


def hardware(size: int = 4096) -> dict[str, float]:
    """Measured speed: matrix products in TFLOP/s, and copying memory in GB/s, read and written."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def seconds(work: Callable[[], Any]) -> float:
        times = []
        for _ in range(6):  # the first one warms up
            started = time.perf_counter()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        return min(times[1:])

    found = {}
    n = size if device == "cuda" else size // 4
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        found[f"{name}_tflops"] = 2 * n**3 / seconds(lambda a=a, b=b: a @ b) / 1e12  # type: ignore[misc]
    source = torch.randn(size * size, device=device)
    target = torch.empty_like(source)
    found["copy_gb_per_second"] = 2 * source.nbytes / seconds(lambda: target.copy_(source)) / 1e9
    return {name: round(value, 3) for name, value in found.items()}


def free_memory_mb() -> float:
    """Memory that new processes can take."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (free,) = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return free / 1024


def append_row(file: Path, row: Row) -> None:
    """Add a line of JSON to a file, so that it survives if this process is killed right after."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row) + "\n")
        lines.flush()
        os.fsync(lines.fileno())


def read_rows(files: Iterable[Path]) -> list[Row]:
    """The rows of those files that exist. A last line that was cut off is removed from its file."""
    rows = []
    for file in files:
        if not file.is_file():
            continue
        text = file.read_text("utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            file.write_text(whole, "utf-8")
        rows += [json.loads(line) for line in whole.splitlines()]
    return rows


def write_result(
    file: Path,
    about: str,
    command: str,
    first_column: str,
    rows: Row,
    *,
    note: str = "",
    **more: Any,
) -> None:
    """Write a file of `benchmarks/results/`, from which the pages make a table.

    Args:
        file: The file.
        about: What was measured.
        command: The command that measures it.
        first_column: What the names of the rows are.
        rows: The table: for each row, its cells by column.
        note: Added to the machine, such as that it was shared.
        more: Other fields, such as the measurements themselves.
    """
    content = {
        "about": about,
        "machine": machine() + (f", {note}" if note else ""),
        "command": command,
        "source": "written by the command",
        "versions": versions("ptune", "torch", "transformers", "peft", "fastapi", "uvicorn"),
        "first_column": first_column,
        "rows": rows,
        **more,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
