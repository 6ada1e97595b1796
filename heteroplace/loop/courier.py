"""Runs one command for one action and leaves a receipt; needs nothing but Python itself.

It is a process of its own so that a loop that is killed does not take the command with it: the
courier waits for the command, ends it when its time is over, and leaves the receipt if it accepted.
It holds the delivery lock, which it was born with, until it ends.

Started as ``python courier.py RECEIPT SECONDS COMMAND...`` with the action on standard input. Exits
with the command's code, or with one of its own and a sentence on standard error.
"""

import json
import os
import signal
import subprocess
import sys
import time

TOO_LONG = 124
NO_RECEIPT = 125
NOT_STARTED = 127


def main(arguments: list[str]) -> int:
    """Run the command and return the exit code."""
    receipt, seconds, command = arguments[0], float(arguments[1]), arguments[2:]
    prepared = f"{receipt}.tmp"
    try:
        # Before the command: a full disk must not be found out when it has accepted.
        prepare(prepared)
    except OSError as error:
        return failed(NO_RECEIPT, f"was not run: {prepared} cannot be written: {error.strerror}")
    code = run(command, seconds)
    try:
        if code == 0:
            leave(prepared, receipt)
        else:
            os.unlink(prepared)
    except OSError as error:
        return failed(NO_RECEIPT, f"exit code {code}, but {receipt}: {error.strerror}")
    return code


def run(command: list[str], seconds: float) -> int:
    """Run the command, for so many seconds at most."""
    try:
        # Its own session: what it starts can be ended with it.
        process = subprocess.Popen(command, start_new_session=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        return failed(NOT_STARTED, f"could not be started: {reason}")
    try:
        code = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return failed(TOO_LONG, f"took longer than {seconds:g} s")
    return code if code >= 0 else 128 - code


def failed(code: int, why: str) -> int:
    """Say why, and return the code."""
    sys.stderr.write(f"\n{why}\n")
    return code


def prepare(prepared: str) -> None:
    """Write what will be the receipt."""
    with open(prepared, "w", encoding="utf-8") as file:
        json.dump({"handed_over_at": time.time()}, file)
        file.flush()
        os.fsync(file.fileno())


def leave(prepared: str, receipt: str) -> None:
    """Put the receipt in its place, so that it survives a power failure."""
    os.replace(prepared, receipt)
    folder = os.open(os.path.dirname(receipt) or ".", os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
