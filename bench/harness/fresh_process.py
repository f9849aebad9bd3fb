"""A function in a process of its own: nothing of it stays for the next one, and it may crash or hang."""

import os
import signal
import tempfile
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar

T = TypeVar("T")
GRACE = 5  # seconds that the process has to end, once it has given its result


def run_in_fresh_process(timeout: float, function: Callable[..., T], *args: Any) -> T:
    """The function's result. Both the function and its arguments have to be picklable.

    Raises: RuntimeError with the type and message of what the function raised, or with how its process ended and the
    last line that it printed; TimeoutError after `timeout` seconds.
    """
    with tempfile.NamedTemporaryFile(prefix="alexnet-process-") as log:
        context = get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_send_result, args=(sender, log.name, function, args))
        process.start()
        assert process.pid is not None
        sender.close()
        try:
            if not receiver.poll(timeout):
                raise TimeoutError(f"not done after {timeout} s")
            failed, result = receiver.recv()
            process.join(GRACE)
        except EOFError:
            process.join()
            last = log.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise RuntimeError(f"its process ended with {process.exitcode}{': ' * bool(last)}{last}") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with its workers, which some loaders leave behind
            process.join()
    if failed:
        raise RuntimeError(result)
    value: T = result
    return value


def _send_result(sender: Connection, log: str, function: Callable[..., object], args: tuple[Any, ...]) -> None:
    os.setsid()  # a process group of its own, which can be killed as one
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    for output in (1, 2):  # many libraries print warnings; only the last line matters, and only after a crash
        os.dup2(file, output)
    try:
        sender.send((False, function(*args)))
    except Exception as error:  # of any library; the parent raises it
        sender.send((True, f"{type(error).__name__}: {error}"))
