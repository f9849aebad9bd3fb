"""Processes that start with torch and DALI imported, which alone takes one five seconds."""

import multiprocessing
from multiprocessing.context import ForkServerContext


def fork_server() -> ForkServerContext:
    """Starts processes as copies of one that has only imported: none shares what another computes or holds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "trainer.train", "bench.command"])
    return context
