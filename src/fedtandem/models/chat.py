"""A tokenizer's chat template as the text before and after a prompt."""

from typing import Any

from fedtandem.errors import ModelError

_PROMPT = "fedtandemprompt"
"""Stands where the prompt goes; letters only, so that no template trims or escapes it."""


def template_around(hf_tokenizer: Any) -> tuple[str, str]:
    """What the chat template writes before and after one user message, up to where the answer begins.

    Raises:
        ModelError: there is no template, or it does not hold the message exactly once as it is.
    """
    if not getattr(hf_tokenizer, "chat_template", None):
        raise ModelError(
            "chat_template is on, but the tokenizer has no chat template: switch it off for this party, or give "
            "its folder a chat_template.jinja."
        )
    try:
        text = hf_tokenizer.apply_chat_template(
            [{"role": "user", "content": _PROMPT}], tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # templates run code of their own and raise what they like
        raise ModelError(
            f"the tokenizer's chat template failed: {error}. Switch chat_template off."
        ) from error
    if text.count(_PROMPT) != 1:
        raise ModelError(
            f"the chat template holds the user's message {text.count(_PROMPT)} times; expected once, unchanged. "
            "Switch chat_template off for this party."
        )
    before, after = text.split(_PROMPT)
    return before, after
