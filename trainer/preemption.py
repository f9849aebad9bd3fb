"""Requests to stop: SIGTERM, SIGUSR1 (which schedulers send before they take a machine back), SIGHUP (the terminal has
gone) and Ctrl-C.

The step under way is finished, a checkpoint written, and the command ends with EXIT_PREEMPTED. A signal may reach one
process or all; they agree on the step after which they stop.
"""

import signal
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: not done, and the same command can continue
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


def heeded_signals() -> list[signal.Signals]:
    """SIGNALS, without SIGHUP where this process was started to survive it, as by nohup."""
    return [each for each in SIGNALS if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN]


class Preempted(Exception):
    """Training ended early because it was asked to, with a checkpoint written."""


class PreemptionHandler:
    """Whether any process was asked to stop, as a context manager that receives the signals.

    In a process that is alone a second Ctrl-C ends it at once.

    Args: world_size: how many processes there are, which must all call `should_stop` once a step.
    """

    def __init__(self, world_size: int):
        self.world_size, self.received = world_size, ""
        self.total: torch.Tensor | None = None
        self.pending: dist.Work | None = None

    def __enter__(self) -> "PreemptionHandler":
        heeded = heeded_signals()
        self.previous: dict[signal.Signals, Any] = {number: signal.signal(number, self._receive) for number in heeded}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.pending and kind is None:
            self.pending.wait()
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received and number == signal.SIGINT and self.world_size == 1:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def should_stop(self) -> bool:
        """Whether to stop now: the same answer in all processes. With several it is what had been received by the call
        before: the sum of one number over gloo, which is exchanged during the step."""
        if self.world_size == 1:
            return bool(self.received)
        answer = False
        if self.pending:
            assert self.total is not None
            self.pending.wait()
            answer = bool(self.total.item())
        self.total = torch.tensor(int(bool(self.received)))
        self.pending = dist.all_reduce(self.total, async_op=True)
        return answer
