"""A tokenizer's chat template as the text before and after a prompt."""

from collections.abc import Sequence
from typing import Any

from fedtandem.errors import ModelError

_PROMPT = "fedtandemprompt"
"""Stands where the prompt goes; letters only, so that no template trims or escapes it."""


def template_around(hf_tokenizer: Any) -> tuple[str, str]:
    """What the chat template writes before and after one user message, up to where the answer begins.

    Raises:
        ModelError: as `template_pieces`.
    """
    before, after = template_pieces(hf_tokenizer, ("user",))
    return before, after


def template_pieces(hf_tokenizer: Any, roles: Sequence[str]) -> list[str]:
    """What the chat template writes around messages of these roles, the last piece up to where the answer begins.

    Returns:
        One text more than there are messages.

    Raises:
        ModelError: there is no template, it refuses such a conversation, or it does not hold each message exactly
            once, in order and as it is.
    """
    if not getattr(hf_tokenizer, "chat_template", None):
        raise ModelError(
            "chat_template is on, but the tokenizer has no chat template: switch it off for this party, or give "
            "its folder a chat_template.jinja."
        )
    marks = [f"{_PROMPT}{'x' * i}q" for i in range(len(roles))]
    messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    try:
        text = hf_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # templates run code of their own and raise what they like
        raise ModelError(
            f"the tokenizer's chat template failed: {error}. Switch chat_template off."
        ) from error
    pieces = []
    for mark in marks:
        before, found, rest = text.partition(mark)
        if not found or mark in rest:
            raise ModelError(
                f"the chat template holds the user's message {text.count(mark)} times; expected once, unchanged. "
                "Switch chat_template off for this party."
            )
        pieces.append(before)
        text = rest
    return [*pieces, text]
