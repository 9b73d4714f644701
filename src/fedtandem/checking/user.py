"""A user's own checker, "package.module:function", in a process of its own: it may raise, hang or crash."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from fedtandem.checking.verdict import Verdict, as_verdict
from fedtandem.user_code import import_function

SHAPE = "(prompt, path) -> Verdict, True, False or None"


class UserChecker:
    """A checker that runs a user's function; a fault of it is a verdict with `failed`, never an error here.

    Args:
        reference: "package.module:function"; called with (prompt, path), it gives a `Verdict`, True, False, None, or
            (one of these, reason).
        timeout_s: for one path. The process is ended then, and a new one begun for the next path.

    Raises:
        ConfigError: there is no such function.
    """

    def __init__(self, reference: str, timeout_s: float = 10.0) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._replies: queue.Queue[str | None] = queue.Queue()
        self.reference = reference
        self.timeout_s = timeout_s
        import_function(reference, "the checker", SHAPE)

    def __call__(self, prompt: str, path: str) -> Verdict:
        """Judge a path; see `Checker`."""
        process = self._running()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps([prompt, path]) + "\n")
            process.stdin.flush()
            reply = self._replies.get(timeout=self.timeout_s)
        except queue.Empty:
            self.close()
            return Verdict(None, f"{self.reference} took more than {self.timeout_s:g} s", failed=True)
        except OSError:
            reply = None
        if reply is None:
            self.close()
            return Verdict(None, f"{self.reference} ended its process", failed=True)
        ok, reason, failed, where = json.loads(reply)
        said = f"{self.reference} {reason}" if failed else reason
        return Verdict(ok, said, failed, None if where is None else (where[0], where[1]))

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._replies = queue.Queue()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fedtandem.checking.user", self.reference],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8",
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )  # fmt: skip
            threading.Thread(target=_listen, args=(self._process, self._replies), daemon=True).start()
        return self._process

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()

    def __enter__(self) -> "UserChecker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def _listen(process: subprocess.Popen[str], replies: "queue.Queue[str | None]") -> None:
    """Pass the process's lines on; None when it ends."""
    if process.stdout is None:
        return
    with process.stdout:
        for line in process.stdout:
            replies.put(line)
    replies.put(None)


def _judge(function: Callable[..., Any], prompt: str, path: str) -> Verdict:
    try:
        return as_verdict(function(prompt, path))
    except Exception as error:
        return Verdict(None, f"raised {type(error).__name__}: {error}"[:300], failed=True)


def _serve(reference: str) -> None:
    """Answer JSON lines [prompt, path] with [ok, reason, failed, first_wrong] until the input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the function prints goes to stderr, not between the replies
    function = import_function(reference, "the checker", SHAPE)
    for line in sys.stdin:
        prompt, path = json.loads(line)
        verdict = _judge(function, prompt, path)
        replies.write(json.dumps([verdict.ok, verdict.reason, verdict.failed, verdict.first_wrong]) + "\n")
        replies.flush()


if __name__ == "__main__":
    _serve(sys.argv[1])
