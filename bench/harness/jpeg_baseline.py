"""libjpeg-turbo alone, a process for each core, decoding JPEGs from memory: what no loader on these cores can surpass.

The processes run this module, which imports neither torch nor DALI, instead of being children of multiprocessing: so
they start at once, and a rank, which may not start children of multiprocessing, can start them.
"""

import json
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import simplejpeg

PROJECT = Path(__file__).parents[2]


class Decoded(NamedTuple):
    """What the processes did together: `rate` images a second, at `cpu` CPU-seconds an image."""

    rate: float
    cpu: float


@contextmanager
def decoders(jpegs: list[bytes], processes: int) -> Iterator[Callable[[float], Decoded]]:
    """A function that has all processes decode the images over and over for some seconds. Each process begins with
    another image."""
    with ExitStack() as stack:
        workers = [_Worker(stack) for _ in range(processes)]
        for number, worker in enumerate(workers):
            begin = number * len(jpegs) // processes
            pickle.dump(jpegs[begin:] + jpegs[:begin], worker.stdin)

        def decode(seconds: float) -> Decoded:
            for worker in workers:
                worker.stdin.write(f"{seconds}\n".encode())
                worker.stdin.flush()
            turns = [json.loads(worker.stdout.readline()) for worker in workers]
            cpu = sum(cpu for _, _, cpu in turns) / sum(count for count, _, _ in turns)
            return Decoded(sum(count / spent for count, spent, _ in turns), cpu)

        decode(0.0)  # returns once all processes have started
        yield decode


class _Worker:
    """A process that runs `_serve`, until `stack` closes."""

    stdin: IO[bytes]
    stdout: IO[bytes]

    def __init__(self, stack: ExitStack):
        command = [sys.executable, "-m", "bench.harness.jpeg_baseline"]
        process = stack.enter_context(
            # In the project's folder, where Python finds this module whether the project is installed or not
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=PROJECT)
        )
        assert process.stdin is not None and process.stdout is not None
        self.stdin, self.stdout = process.stdin, process.stdout


def _serve() -> None:
    """Reads images, then numbers of seconds to decode them for; answers each with (images, seconds, CPU-seconds)."""
    jpegs = pickle.load(sys.stdin.buffer)
    for line in sys.stdin.buffer:
        print(json.dumps(_decode(jpegs, float(line))), flush=True)


def _decode(jpegs: list[bytes], seconds: float) -> tuple[int, float, float]:
    """(images, seconds, CPU-seconds)"""
    count, began, cpu = 0, time.perf_counter(), time.process_time()
    while not count or time.perf_counter() - began < seconds:
        simplejpeg.decode_jpeg(jpegs[count % len(jpegs)], strict=False)
        count += 1
    return count, time.perf_counter() - began, time.process_time() - cpu


if __name__ == "__main__":
    _serve()
