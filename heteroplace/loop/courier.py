"""Runs one command for one action and leaves a receipt; needs nothing but Python itself.

It is a process of its own so that a loop that is killed does not take the command with it: the
courier waits for the command, ends it when its time is over, and writes down that it accepted. It
holds the delivery lock, which it was born with, until it ends.

Started as ``python courier.py RECEIPT SECONDS COMMAND...`` with the action on standard input. Exits
with the command's code, :data:`TOO_LONG` if its time was over, :data:`NOT_STARTED` if it could not
be started, :data:`NO_RECEIPT` if it accepted but the receipt could not be written.
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
    try:
        # Its own session: what it starts can be ended with it.
        process = subprocess.Popen(command, start_new_session=True)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"cannot be started: {getattr(error, 'strerror', None) or error}\n")
        return NOT_STARTED
    try:
        code = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return TOO_LONG
    if code == 0:
        try:
            leave(receipt)
        except OSError as error:
            sys.stderr.write(f"receipt cannot be written: {error}\n")
            return NO_RECEIPT
    return code if code >= 0 else 128 - code


def leave(receipt: str) -> None:
    """Write the receipt whole or not at all, so that it survives a power failure."""
    temporary = f"{receipt}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump({"accepted_at": time.time()}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, receipt)
    folder = os.open(os.path.dirname(receipt) or ".", os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
