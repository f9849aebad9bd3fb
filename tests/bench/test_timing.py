"""The clock covers the windows alone, and a peak of memory belongs to its own stage."""

import mmap
import time
from statistics import median

import pytest

from bench.harness.machine import cpu_context
from bench.harness.timing import timed, timed_beside

HERE = cpu_context()


def test_the_clock_covers_the_windows_alone():
    calls = []

    def step():
        calls.append(time.perf_counter())
        time.sleep(0.2 if len(calls) == 1 else 0.01)  # the first call is slow, as first calls are

    result = timed(step, 5, 0.5, HERE)
    assert result.median == pytest.approx(500, rel=0.15) and len(result.rates) == 5
    assert result.cpu < 0.5 and result.gpu is None and result.memory > 2**20


def test_two_steps_at_once_each_have_their_own_rate():
    took = {0.02: [], 0.06: []}

    def sleep(seconds):
        began = time.perf_counter()
        time.sleep(seconds)
        took[seconds].append(time.perf_counter() - began)  # longer than asked for on a busy machine

    one, other = timed_beside(lambda: sleep(0.02), lambda: sleep(0.06), 5, 0.8, HERE)
    for result, seconds in ((one, 0.02), (other, 0.06)):
        assert result.median == pytest.approx(5 / median(took[seconds]), rel=0.3)
    assert one.median > 1.5 * other.median and len(other.rates) == 5 and other.memory == one.memory


def test_a_call_that_outlasts_all_windows_counts_for_the_part_of_it_that_lies_within_them():
    _, slow = timed_beside(lambda: time.sleep(0.01), lambda: time.sleep(1), 5, 0.2, HERE)
    assert slow.median == pytest.approx(5, rel=0.3)


def test_what_the_step_beside_raises_is_raised():
    def fail():
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        timed_beside(lambda: time.sleep(0.01), fail, 1, 0.1, HERE)


def test_a_peak_of_memory_is_of_its_own_stage():
    def take():
        with mmap.mmap(-1, 2**28) as memory:  # which goes back to the kernel at once
            for page in range(0, 2**28, 4096):
                memory[page] = 1

    take()
    quiet = timed(lambda: time.sleep(0.01), 1, 0.1, HERE).memory
    assert timed(take, 1, 0.1, HERE).memory > quiet + 2**27
