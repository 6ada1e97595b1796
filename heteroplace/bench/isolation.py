"""Running one measurement in a process of its own."""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

T = TypeVar("T")


def isolated(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a new process and return what it returns.

    Parameters
    ----------
    function
        Of a module, so that the new process finds it.
    arguments
        Passed by pickling, as is the result.

    Raises
    ------
    RuntimeError
        If the function raises or the process dies; says how.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, function, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        result, failure = receiver.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise RuntimeError(f"the process {how} before it was done") from None
    except BaseException:
        process.kill()
        process.join()
        raise
    finally:
        receiver.close()
    process.kill()  # It has nothing left to do but to wait for threads an engine left behind.
    process.join()
    if failure is not None:
        raise RuntimeError(failure)
    answer: T = result
    return answer


def _child(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    # An interrupt from the keyboard reaches all processes; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("heteroplace").addHandler(logging.NullHandler())
    try:
        sender.send((function(*arguments), None))
    except Exception as error:
        sender.send((None, f"{type(error).__name__}: {error}"))
    finally:
        sender.close()
