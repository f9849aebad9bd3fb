"""`--profile`: a trace of some of a run's steps, for chrome://tracing."""

from pathlib import Path

import torch

from shards.console import notice


class Profiler:
    """Traces steps FIRST to LAST with torch.profiler into `trace-FIRST-LAST.json`; as a context manager, whose end
    writes what there is of a run that ended before LAST.

    Args: steps: the first and the last step to trace, counted from 1; None for no trace.
    """

    def __init__(self, steps: tuple[int, int] | None, run: Path):
        self.steps, self.run = steps, run
        self.profiler: torch.profiler.profile | None = None

    def __enter__(self) -> "Profiler":
        self.step_done(0)
        return self

    def __exit__(self, *_: object) -> None:
        if self.profiler and self.steps:
            self.profiler.stop()
            path = self.run / f"trace-{self.steps[0]}-{self.steps[1]}.json"
            try:
                self.profiler.export_chrome_trace(str(path))
            except (OSError, RuntimeError) as error:  # a full disk is no reason to end the run
                notice(f"{path} cannot be written: {error}")
            self.profiler = None

    def step_done(self, step: int) -> None:
        """To be called after each step, with how many are done."""
        if self.steps and step == self.steps[0] - 1:
            self.profiler = torch.profiler.profile()
            self.profiler.start()
        if self.steps and step == self.steps[1]:
            self.__exit__()
