"""Spreading an experiment over a Ray cluster.

Each order is one Ray task on one core. Ray is told not to retry: an order whose worker or node
died comes back here and is tried again, each profile on its own, so that the row which is to blame
is known.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import heteroplace
from heteroplace.compare.measure import (
    Finished,
    Order,
    asked,
    failed,
    measure,
    prepare_worker,
)
from heteroplace.errors import InputError

log = logging.getLogger("heteroplace")

INSTALL = "needs Ray; install it with: pip install 'heteroplace[ray]'"
RECYCLE = 200
# One more than on this machine: a node may be lost as well.
ATTEMPTS = 3
AHEAD = 2
BREATH = 1.0
CONNECTING = 10.0

Function = Callable[[Order], "Answer"]
Answer = tuple[str, list[Finished]]


class RayExecutor:
    """Runs orders on a Ray cluster; a context manager that connects and disconnects.

    Parameters
    ----------
    address
        As ``ray.init`` takes it: ``HOST:PORT`` of the head node, ``ray://HOST:PORT``, or ``auto``
        for the cluster of this machine.
    function
        What a worker does with an order, as :func:`work` does; of a module.

    Raises
    ------
    InputError
        On entering, if Ray is missing or there is no cluster at the address.
    """

    name: Literal["ray"] = "ray"

    def __init__(self, address: str, function: Callable[[Order], Answer] | None = None) -> None:
        self.address = address
        self.workers = 0
        self._function = function or work

    def __enter__(self) -> RayExecutor:
        try:
            import ray
        except ImportError:
            raise InputError("--ray", INSTALL) from None
        self._mine = not ray.is_initialized()
        _refuse_unreachable(self.address)
        try:
            if self._mine:
                ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)
            self.workers = self._cores()
        except Exception as error:
            # Ray raises ConnectionError, ValueError, RuntimeError and its own, and says why.
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError("--ray", f"no cluster at {self.address!r}: {reason}") from None
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        if self._mine:
            ray.shutdown()

    def _cores(self) -> int:
        import ray

        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        return max(1, int(resources.get("CPU", 0)))

    def run(self, orders: Iterable[Order]) -> Generator[list[Finished], None, None]:
        """Yield rows as they come, in batches; every profile of every order has one in the end.

        Parameters
        ----------
        orders
            What to do; taken one by one, a few more than there are cores.

        Raises
        ------
        InputError
            If a node lacks heteroplace, has another version of it or cannot run it.
        """
        import ray

        remote = ray.remote(num_cpus=1, max_retries=0, max_calls=RECYCLE)(self._function)
        waiting = iter(orders)
        again: deque[Order] = deque()
        running: dict[Any, Order] = {}
        try:
            while True:
                # Nodes come and go.
                most = AHEAD * self._cores()
                while len(running) < most:
                    order = again.popleft() if again else next(waiting, None)
                    if order is None:
                        break
                    running[remote.remote(order)] = order
                if not running:
                    return
                # Leave nothing in the cluster that is done: it would go with its node.
                ready, _ = ray.wait(list(running), num_returns=1, timeout=BREATH)
                more, _ = ray.wait(list(running), num_returns=len(running), timeout=0)
                batch: list[Finished] = []
                for reference in dict.fromkeys([*ready, *more]):
                    order = running.pop(reference)
                    try:
                        version, rows = ray.get(reference)
                    except ray.exceptions.RayTaskError as error:
                        # Whatever goes wrong in a row is in the row: this is the node's fault.
                        raise InputError("--ray", _unusable(error)) from None
                    except ray.exceptions.RayError as error:
                        batch += _lost(order, error, again)
                        continue
                    _refuse_other(version)
                    batch += rows
                if batch:
                    yield batch
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def _refuse_unreachable(address: str) -> None:
    """Say at once that nobody listens: Ray itself would try for minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECTING).close()
    except (OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError("--ray", f"no cluster at {address!r}: {reason}") from None


def work(order: Order) -> Answer:
    """What a worker does with an order; ends the process if it takes far too long."""
    prepare_worker()
    rows: list[Finished] = []
    with _watched(order):
        measure(order, rows.append)
    return heteroplace.__version__, rows


@contextmanager
def _watched(order: Order) -> Generator[None, None, None]:
    limits = [order.seconds(name) for name in order.profiles]
    known = [each for each in limits if each is not None]
    if len(known) < len(limits):
        yield
        return
    timer = threading.Timer(sum(known), os._exit, (1,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _lost(order: Order, error: Exception, again: deque[Order]) -> list[Finished]:
    """What becomes of an order that did not come back."""
    message = f"{type(error).__name__}: {' '.join(str(error).split())}"
    following = order.attempt + 1
    if order.attempt < ATTEMPTS:
        log.warning("%s: %s; once more", order.task.key, message)
        again.extend(
            replace(order, profiles={name: profile}, attempt=following)
            for name, profile in order.profiles.items()
        )
        return []
    return [
        Finished(failed(asked(order), name, profile, f"{message[:300]} ({ATTEMPTS} times)"))
        for name, profile in order.profiles.items()
    ]


def _unusable(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = (lines or [type(error).__name__])[-1][:300]
    return f"a node cannot run heteroplace {heteroplace.__version__}; install it on all ({reason})"


def _refuse_other(version: str) -> None:
    if version != heteroplace.__version__:
        raise InputError(
            "--ray",
            f"a node has heteroplace {version}, this machine has {heteroplace.__version__}; "
            "install the same on all",
        )
