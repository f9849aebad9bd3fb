"""The memory that this process uses, as the kernel counts it."""

from pathlib import Path


def process_memory(line: str) -> int:
    """Bytes of this process's memory, by their name in /proc/self/status: VmRSS, resident now; VmHWM, at its peak."""
    status = dict(row.split(":", 1) for row in Path("/proc/self/status").read_text().splitlines())
    return int(status[line].split()[0]) * 1024


def reset_peak_memory() -> None:
    """Has the kernel record the peak, VmHWM, from here on (proc(5))."""
    Path("/proc/self/clear_refs").write_text("5")
