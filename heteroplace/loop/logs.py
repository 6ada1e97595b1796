"""Log lines as JSON objects, for machines that read them."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

FIELDS = "heteroplace"


class JsonLines(logging.Formatter):
    """One JSON object per line: ``time``, ``level``, ``message`` and what the line is about.

    A log call adds fields of its own with ``extra=about(...)``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Write a record as one line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields = getattr(record, FIELDS, None)
        if isinstance(fields, dict):
            line.update(fields)
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class PlainLines(logging.Formatter):
    """Time, level and message, for people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")


def about(**fields: object) -> dict[str, object]:
    """Fields for the ``extra`` of a log call."""
    return {FIELDS: fields}
