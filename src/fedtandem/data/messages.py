"""Chat rows: `messages` (role, content) and ShareGPT's `conversations` (from, value), as prompt and reply."""

from collections.abc import Mapping, Sequence

from fedtandem.errors import DataError

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
"""Both vocabularies of roles -> that of chat templates."""


def prompt_and_reply(turns: object, *, labelled: bool, place: str, where: str) -> tuple[str, str | None]:
    """The last assistant turn is the reply, everything before it the prompt.

    One user turn, with or without a system turn, becomes plain text (the tokenizer's chat template may wrap
    it later, at home: parties may have different templates). A longer talk is written out as
    "user: ...\\nassistant: ...\\nuser: ..." so that all parties share the same bytes.

    Args:
        labelled: False drops the reply; a talk may then also end with a user turn.

    Raises:
        DataError: no list of turns, an unknown role, content that is no text, or no reply at the end.
    """
    talk = [_turn(turn, i, place, where) for i, turn in enumerate(_list(turns, place, where))]
    reply: str | None = None
    if talk and talk[-1][0] == "assistant":
        reply = talk.pop()[1]
    elif labelled:
        last = talk[-1][0] if talk else "nothing"
        raise DataError(
            f"{where}: {place}: the talk ends with {last!r}, not with an assistant turn to learn from. Add "
            "one, or "
            "set labelled = false."
        )
    if not any(role == "user" for role, _ in talk):
        raise DataError(f"{where}: {place}: the talk has no user turn before the reply.")
    return _render(talk), reply if labelled else None


def _render(talk: Sequence[tuple[str, str]]) -> str:
    if sum(role != "system" for role, _ in talk) == 1:
        return "\n\n".join(text for _, text in talk)
    return "\n".join(text if role == "system" else f"{role}: {text}" for role, text in talk)


def _list(turns: object, place: str, where: str) -> Sequence[object]:
    if isinstance(turns, list | tuple):
        return turns
    raise DataError(f"{where}: {place}: messages must be a list of turns, but are {turns!r:.80}.")


def _turn(turn: object, index: int, place: str, where: str) -> tuple[str, str]:
    if not isinstance(turn, Mapping):
        raise DataError(f"{where}: {place}: message {index} is no object: {turn!r:.80}.")
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    if role not in ROLES:
        raise DataError(
            f"{where}: {place}: message {index} has the role {role!r}; known are {', '.join(ROLES)}."
        )
    if isinstance(content, list | tuple):  # parts, as multimodal sets have them; text parts only
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        content = None if None in parts else "".join(str(part) for part in parts)
    if not isinstance(content, str):
        raise DataError(f"{where}: {place}: message {index} ({role}) holds no text: {content!r:.80}.")
    return ROLES[role], content
