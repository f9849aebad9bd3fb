"""Being asked to stop: SIGTERM, SIGUSR1 (as schedulers send before they take a machine back) and Ctrl-C.

The step that is under way is finished, a checkpoint written, and the command ends with EXIT_PREEMPTED. A signal may reach one
process or all; they agree on the step after which they stop.
"""

import signal

import torch
import torch.distributed as dist

EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: not done, the same command may go on
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Preempted(Exception):
    """Training ended early because it was asked to, with a checkpoint written."""


class PreemptionHandler:
    """Whether anyone was asked to stop, as a context manager that hears the signals.

    In a process that is alone a second Ctrl-C ends it at once.

    Args: world_size: how many processes there are, which must all call `should_stop` once a step.
    """

    def __init__(self, world_size: int):
        self.world_size, self.heard, self.sum, self.work = world_size, "", None, None

    def __enter__(self) -> "PreemptionHandler":
        self.before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(self, kind, *_) -> None:
        if self.work and kind is None:
            self.work.wait()
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _hear(self, number, _) -> None:
        if self.heard and number == signal.SIGINT and self.world_size == 1:
            raise KeyboardInterrupt
        self.heard = signal.Signals(number).name

    def should_stop(self) -> bool:
        """Whether to stop now: the same answer in all processes. With several it is what had been heard by the call
        before, whose sum, of one number over gloo, was on its way during the step."""
        if self.world_size == 1:
            return bool(self.heard)
        answer = False
        if self.work:
            self.work.wait()
            answer = bool(self.sum.item())
        self.sum = torch.tensor(int(bool(self.heard)))
        self.work = dist.all_reduce(self.sum, async_op=True)
        return answer
