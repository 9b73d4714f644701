"""How chat and completion differ: the same answer in two shapes."""

import uuid
from collections.abc import Sequence
from typing import Any

from fedtandem.serving.answering import Token
from fedtandem.serving.openai_wire import ChatRequest, CompletionRequest, chat_logprobs, completion_logprobs


class ChatWords:
    """Chat's words."""

    kind = "chat.completion"

    def __init__(self, asked: ChatRequest) -> None:
        self._logprobs = bool(asked.logprobs)
        self.id = f"chatcmpl-{uuid.uuid4().hex}"

    def whole(self, text: str, tokens: Sequence[Token], finish: str) -> dict[str, Any]:
        """The choice of a whole answer."""
        logprobs = chat_logprobs([token.as_dict() for token in tokens]) if self._logprobs else None
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": finish}

    def first(self) -> dict[str, Any] | None:
        """The choice of a stream's first chunk, if there is one before any text."""
        return self._delta({"role": "assistant", "content": ""}, [], None)

    def part(self, text: str, tokens: Sequence[Token]) -> dict[str, Any]:
        """The choice of a chunk."""
        return self._delta({"content": text}, tokens, None)

    def last(self, finish: str) -> dict[str, Any]:
        """The choice that says why the answer ended."""
        return self._delta({}, [], finish)

    def _delta(self, delta: dict[str, Any], tokens: Sequence[Token], finish: str | None) -> dict[str, Any]:
        logprobs = chat_logprobs([token.as_dict() for token in tokens]) if self._logprobs and tokens else None
        return {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


class CompletionWords:
    """The older interface's words."""

    kind = "text_completion"

    def __init__(self, asked: CompletionRequest) -> None:
        self._logprobs = asked.logprobs is not None
        self._offset = 0
        self.id = f"cmpl-{uuid.uuid4().hex}"

    def whole(self, text: str, tokens: Sequence[Token], finish: str) -> dict[str, Any]:
        """The choice of a whole answer."""
        return self._choice(text, tokens, finish)

    def first(self) -> dict[str, Any] | None:
        """The choice of a stream's first chunk, if there is one before any text."""
        return None

    def part(self, text: str, tokens: Sequence[Token]) -> dict[str, Any]:
        """The choice of a chunk."""
        return self._choice(text, tokens, None)

    def last(self, finish: str) -> dict[str, Any]:
        """The choice that says why the answer ended."""
        return self._choice("", [], finish)

    def _choice(self, text: str, tokens: Sequence[Token], finish: str | None) -> dict[str, Any]:
        logprobs = None
        if self._logprobs and tokens:
            told = [token.as_dict() for token in tokens]
            logprobs = completion_logprobs(told, self._offset)
            self._offset += sum(len(token["token"]) for token in told)
        return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish}
