"""libjpeg-turbo alone, a process a core, decoding JPEGs that lie in memory: what no loader on these cores can pass.

The processes run this file as a script, which imports neither torch nor DALI: so they are there at once, and a rank,
which may start no children of multiprocessing, can start them.
"""

import json
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import simplejpeg


class Decoded(NamedTuple):
    """What processes did together: `rate` images a second, at `cpu` CPU-seconds an image."""

    rate: float
    cpu: float


@contextmanager
def decoders(jpegs: list[bytes], processes: int) -> Iterator:
    """A function of the seconds to decode for, which returns what so many processes then `Decoded`, turning the
    images over and over, each process from another one on."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with ExitStack() as stack:
        workers = [stack.enter_context(subprocess.Popen([sys.executable, __file__], **pipes)) for _ in range(processes)]
        for number, worker in enumerate(workers):
            begin = number * len(jpegs) // processes
            pickle.dump(jpegs[begin:] + jpegs[:begin], worker.stdin)

        def decode(seconds: float) -> Decoded:
            for worker in workers:
                worker.stdin.write(f"{seconds}\n".encode())
                worker.stdin.flush()
            done = [json.loads(worker.stdout.readline()) for worker in workers]
            cpu = sum(cpu for _, _, cpu in done) / sum(count for count, _, _ in done)
            return Decoded(sum(count / spent for count, spent, _ in done), cpu)

        decode(0.0)  # all have begun
        yield decode


def _decode(jpegs: list[bytes], seconds: float) -> tuple[int, float, float]:
    """(images, seconds, CPU-seconds)"""
    count, began, cpu = 0, time.perf_counter(), time.process_time()
    while not count or time.perf_counter() - began < seconds:
        simplejpeg.decode_jpeg(jpegs[count % len(jpegs)], strict=False)
        count += 1
    return count, time.perf_counter() - began, time.process_time() - cpu


if __name__ == "__main__":
    held = pickle.load(sys.stdin.buffer)
    for line in sys.stdin.buffer:
        print(json.dumps(_decode(held, float(line))), flush=True)
