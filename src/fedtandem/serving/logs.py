"""One JSON line per request and event, on stderr; texts, keys and tokens never stand in it."""

import json
import logging
import sys
import time
from typing import Any

LOGGER = logging.getLogger("fedtandem.serving")


class JsonLines(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, event and the fields that were given."""
        fields = getattr(record, "fields", {})
        whole = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **fields,
        }
        if record.exc_info and record.exc_info[0] is not None:
            # The kind and place of a fault, not its message: that may quote a text.
            trace = record.exc_info[2]
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            whole["fault"] = record.exc_info[0].__name__
            if trace is not None:
                whole["at"] = f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"
        return json.dumps(whole, ensure_ascii=True)


def start_logging() -> None:
    """Write to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False


def set_level(level: str) -> None:
    """The least important lines that are still written: debug, info, warning or error."""
    LOGGER.setLevel(level.upper())


def log(event: str, *, level: int = logging.INFO, fault: BaseException | None = None, **fields: Any) -> None:
    """One line."""
    if not LOGGER.isEnabledFor(level):
        return
    seen = None if fault is None else (type(fault), fault, fault.__traceback__)
    # Made here: `LOGGER.log` looks for its caller first, which takes as long as all the rest.
    record = logging.LogRecord(LOGGER.name, level, "", 0, event, (), seen)
    record.fields = fields
    LOGGER.handle(record)
