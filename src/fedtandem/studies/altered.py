"""Questions asked again in other clothes, or changed into other questions: what a cache must and must not confuse."""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Change = Callable[[str, Sequence[str], np.random.Generator], str | None]
"""(question, names to choose from, randomness) -> the altered question; None where it has nothing to alter."""

_NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]{2,}")
"""A capitalised word inside a sentence."""
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_LINK = re.compile(
    r"\b(is|are|was|were|do|does|did|can)\b (.{3,40}?) (part of|in|from|than|before|after|to|of|over|under) (.{3,40})$"
)
_AUXILIARY = re.compile(r"\b(is|are|was|were|do|does|did|can|could|will|would|has|have|had)\b", re.IGNORECASE)


def same(text: str, names: Sequence[str], rng: np.random.Generator) -> str:
    """Word for word."""
    return text


def near(text: str, names: Sequence[str], rng: np.random.Generator) -> str:
    """The same question typed by another hand: one or two of case, politeness, punctuation, spaces, apostrophes."""
    hands: list[Callable[[str], str]] = [
        lambda t: t[0].swapcase() + t[1:],
        lambda t: f"Please {t[0].lower()}{t[1:]}" if t[0].islower() else f"please {t}",
        lambda t: t.removesuffix(".") if t.endswith(".") else t + " ",
        lambda t: t.replace(" ", "  ", 2),
        lambda t: t.replace("'", "’"),
        lambda t: t.replace(", ", " , ", 1),
    ]
    altered = text
    for i in rng.permutation(len(hands))[: rng.integers(1, 3)]:
        altered = hands[i](altered)
    return altered


def reversal(text: str, names: Sequence[str], rng: np.random.Generator) -> str | None:
    """Two names, or the two sides of a relation, change places."""
    found = list(dict.fromkeys(_NAME.findall(text)))
    if len(found) >= 2:
        one, other = found[:2]
        return re.sub(rf"\b({one}|{other})\b", lambda m: other if m[0] == one else one, text)
    link = _LINK.search(text)
    if link is None or link[2] == link[4]:
        return None
    return text[: link.start()] + f"{link[1]} {link[4]} {link[3]} {link[2]}"


def negation(text: str, names: Sequence[str], rng: np.random.Generator) -> str | None:
    """ "not" after the first auxiliary, or taken away where it stood."""
    if re.search(r"\bnot\b", text):
        return re.sub(r"\bnot ", "", text, count=1)
    found = _AUXILIARY.search(text)
    if found is None:
        return None
    return f"{text[: found.end()]} not{text[found.end() :]}"


def number(text: str, names: Sequence[str], rng: np.random.Generator) -> str | None:
    """One number becomes another one."""
    found = list(_NUMBER.finditer(text))
    if not found:
        return None
    chosen = found[rng.integers(len(found))]
    other = str(int(float(chosen[0])) + int(rng.integers(1, 10)))
    return text[: chosen.start()] + other + text[chosen.end() :]


def entity(text: str, names: Sequence[str], rng: np.random.Generator) -> str | None:
    """A name becomes another one, wherever it stands."""
    found = list(dict.fromkeys(_NAME.findall(text)))
    others = [name for name in names if name not in found]
    if not found or not others:
        return None
    return re.sub(rf"\b{found[0]}\b", others[rng.integers(len(others))], text)


KEPT: Mapping[str, Change] = {"same": same, "near": near}
"""The same answer."""
CHANGED: Mapping[str, Change] = {
    "reversal": reversal,
    "negation": negation,
    "number": number,
    "entity": entity,
}
"""Another question: another answer, by construction."""


def names_in(texts: Sequence[str]) -> list[str]:
    """Capitalised words inside sentences."""
    return sorted({name for text in texts for name in _NAME.findall(text)})
