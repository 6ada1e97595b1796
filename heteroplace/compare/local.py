"""Worker processes on this machine.

A worker belongs to one instance at a time, so that it is known which one a death or a hang is due
to. Workers are forked from a small server that has all imports done, or spawned where there is no
such thing, and replaced after a number of instances, so that what engines leave behind cannot add
up.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Literal

from heteroplace.compare.measure import (
    Finished,
    Order,
    asked,
    failed,
    measure,
    prepare_worker,
)

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

log = logging.getLogger("heteroplace")

RECYCLE = 200
ATTEMPTS = 2
ENDING = 5.0
# How often the clock is looked at while nothing is heard.
BREATH = 1.0
METHOD = "forkserver"

Measure = Callable[..., None]


class LocalExecutor:
    """Runs orders on worker processes.

    Parameters
    ----------
    workers
        Number of processes.
    recycle
        Instances after which a worker is replaced.
    function
        What a worker does with an order, as :func:`heteroplace.compare.measure.measure` does; of a
        module.
    """

    name: Literal["local"] = "local"

    def __init__(self, workers: int, recycle: int = RECYCLE, function: Measure = measure) -> None:
        self.workers = workers
        self._recycle = recycle
        self._function = function

    def run(self, orders: Iterable[Order]) -> Generator[list[Finished], None, None]:
        """Yield rows as they come, in batches; every profile of every order has one in the end.

        Parameters
        ----------
        orders
            What to do; taken one by one as workers are free.
        """
        waiting = iter(orders)
        again: deque[Order] = deque()
        workers: list[_Worker] = []
        context = _context()

        def next_order() -> Order | None:
            return again.popleft() if again else next(waiting, None)

        try:
            while True:
                while len(workers) < self.workers and (order := next_order()) is not None:
                    workers.append(_Worker(context, self._function, order))
                if not workers:
                    return
                batch: list[Finished] = []
                ready = wait([worker.connection for worker in workers], BREATH)
                for worker in list(workers):
                    if worker.connection in ready:
                        batch += worker.hear()
                    if not worker.alive or worker.late:
                        batch += _lost(worker, again)
                        worker.stop()
                        workers.remove(worker)
                    elif worker.idle:
                        following = next_order() if worker.served < self._recycle else None
                        if following is None:
                            worker.stop()
                            workers.remove(worker)
                        else:
                            worker.give(following)
                if batch:
                    yield batch
        finally:
            for worker in workers:
                worker.stop()


def _lost(worker: _Worker, again: deque[Order]) -> list[Finished]:
    """What becomes of the order of a worker that died or hangs."""
    order = worker.order
    if order is None or not order.profiles:
        return []
    name, profile = next(iter(order.profiles.items()))
    if worker.late:
        message = f"no answer within {worker.seconds:g} s (time limit and patience); stopped"
    elif order.attempt < ATTEMPTS:
        log.warning("%s %s: %s; once more", order.task.key, name, worker.ending)
        again.appendleft(order.without("", order.attempt + 1))
        return []
    else:
        message = f"{worker.ending}, {ATTEMPTS} times"
    row = failed(worker.facts or asked(order), name, profile, message)
    rest = order.without(name, 1)
    if rest.profiles:
        again.appendleft(rest)
    return [Finished({**row, "attempts": order.attempt})]


class _Worker:
    """A process and what it works on."""

    def __init__(self, context: BaseContext, function: Measure, order: Order) -> None:
        self.connection, far = context.Pipe()
        self.served = 0
        self.alive = True
        self._process: Any = context.Process(  # type: ignore[attr-defined]
            target=_serve, args=(far, function), daemon=True
        )
        self._process.start()
        far.close()  # Else its end would not be noticed when the process dies.
        self.give(order)

    def give(self, order: Order) -> None:
        """Hand over an order."""
        self.order: Order | None = order
        self.facts: dict[str, Any] | None = None
        self.served += 1
        self._begin_row()
        with contextlib.suppress(OSError):  # A dead worker is found out when it is heard.
            self.connection.send(order)

    def _begin_row(self) -> None:
        self.since = time.monotonic()
        order = self.order
        profiles = order.profiles if order is not None else {}
        self.seconds = order.seconds(next(iter(profiles))) if order and profiles else None

    @property
    def idle(self) -> bool:
        """Whether it has done all it was given."""
        return self.order is None

    @property
    def late(self) -> bool:
        """Whether it has not answered for too long."""
        return self.seconds is not None and time.monotonic() - self.since > self.seconds

    @property
    def ending(self) -> str:
        """How the process ended, in words."""
        self._process.join(ENDING)
        code = self._process.exitcode
        if code is None:
            return "the worker process broke off"
        if code < 0:
            return f"the worker process was killed by signal {-code}"
        return f"the worker process ended with exit code {code}"

    def hear(self) -> list[Finished]:
        """Take everything it has sent."""
        rows: list[Finished] = []
        try:
            while self.order is not None and self.connection.poll():
                kind, content = self.connection.recv()
                if kind == "facts":
                    self.facts = content
                elif kind == "row":
                    rows.append(content)
                    self.order = self.order.without(content.row["profile"], 1)
                    self._begin_row()
                else:
                    self.order, self.seconds = None, None
        except (EOFError, OSError):
            self.alive = False
        return rows

    def stop(self) -> None:
        """End the process, whatever it does."""
        self.connection.close()
        self._process.kill()
        self._process.join()
        self._process.close()


def _context() -> BaseContext:
    if METHOD not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context(METHOD)
    context.set_forkserver_preload([__name__, "heteroplace.compare.preload"])
    return context


def _serve(connection: Connection, function: Measure) -> None:
    """Work on orders until the other end is closed."""
    # An interrupt from the keyboard reaches all processes; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    prepare_worker()
    orders: deque[Order] = deque()
    arrived = threading.Semaphore(0)

    def listen() -> None:
        # When the parent is gone, killed or not, nobody waits for what is being solved.
        try:
            while True:
                orders.append(connection.recv())
                arrived.release()
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=listen, name="heteroplace-orders", daemon=True).start()
    while True:
        arrived.acquire()
        function(
            orders.popleft(),
            lambda done: connection.send(("row", done)),
            lambda facts: connection.send(("facts", facts)),
        )
        connection.send(("end", None))
