"""When two contexts mean the same for sure: gates that a cosine does not replace.

A question and its reversal have almost the same embedding. So an answer is reused only where the look-back window
has the same content words in the same order, the same numbers and the same negations; everything else is refused.
"""

import hashlib
import re
from collections.abc import Sequence

WINDOW_WORDS = 256
"""How far a text is looked back over; a longer one keeps its last words."""

_POLITE = frozenset({"please", "kindly"})
_ARTICLES = frozenset({"a", "an", "the"})
"""Words whose presence changes no answer. Prepositions and tenses do: "from A to B" is not "to A from B"."""
_COUNTED = frozenset({"few", "little", "lot", "bit"})
"""Before these an article counts: a few is more than few."""
_ENDS = frozenset('.:!?"“”')
"""What a new sentence may begin after."""
_CONTRACTIONS = {"can't": "can not", "cannot": "can not", "won't": "will not", "shan't": "shall not"}
_PIECE = re.compile(
    r"[-+]?\d+(?:[.,:]\d+)*"  # numbers with sign, decimals, times
    r"|\w+(?:['’]\w+)*"  # words with their apostrophes
    r"|[^\w\s]"
)
_SILENT = frozenset(".,;:!\"'`’‘“”()[]{}…-–—")
"""Punctuation that may differ; ? % $ € < > = / and the like may not."""


def content_key(text: str, window: int = WINDOW_WORDS) -> tuple[str, ...]:
    """What must be equal for an answer to be reused, in order.

    Case is folded at the beginning of a sentence only: Turkey is not turkey, US not us, 5 M not 5 m. An article goes
    unless it may be a name ("vitamin A", "The Who") or counts ("a few"). "isn't" is "is not"; 1,000 is 1000.

    Args:
        text: the context.
        window: at most so many pieces, the last ones.
    """
    found = _PIECE.findall(text)
    pieces: list[str] = []
    begins = True
    for i, piece in enumerate(found):
        after = found[i + 1] if i + 1 < len(found) else ""
        if piece in _SILENT and not _is_mathematics(piece, found[i - 1] if i else "", after):
            begins = begins or piece in _ENDS
            continue
        if piece[-1].isdigit() and piece.lstrip("+-")[:1].isdigit():
            pieces.append(re.sub(r",(?=\d{3}(?:\D|$))", "", piece.removeprefix("+")))
        elif _goes(piece, after, begins):
            continue  # and the next word begins in its place
        else:
            word = piece.casefold() if begins and not (len(piece) > 1 and piece.isupper()) else piece
            word = word.replace("’", "'")
            pieces += _CONTRACTIONS.get(word, f"{word[:-3]} not" if word.endswith("n't") else word).split()
        begins = piece in _ENDS
    return tuple(pieces[-window:])


def _goes(piece: str, after: str, begins: bool) -> bool:
    """Whether a word changes no answer here."""
    word = piece.casefold()
    if word not in _ARTICLES or after.casefold() in _COUNTED:
        return word in _POLITE
    return piece == word or (begins and after == after.casefold())


def _is_mathematics(piece: str, before: str, after: str) -> bool:
    """8 - 3 is not 8 3, 3! not 3, f'(x) not f(x)."""
    digits = before[-1:].isdigit()
    if piece in "-–—":
        return digits and after[:1].isdigit()
    return (digits and piece in "!'’") or (after == "(" and piece in "'’")


def text_gate(text: str, window: int = WINDOW_WORDS) -> bytes:
    """The content key as 16 bytes: what travels instead of the text."""
    return _digest(b"text", [piece.encode() for piece in content_key(text, window)])


def token_gate(token_ids: Sequence[int], n: int) -> bytes:
    """In generation: the last n tokens, exactly; 16 bytes."""
    return _digest(b"tokens", [str(int(i)).encode() for i in token_ids[-n:]])


def namespace(tenant: str, model: str, tokenizer: str, system_prompt: str, decoding: str) -> bytes:
    """Who shares answers at all: 16 bytes of tenant, model, tokenizer, system prompt, decoding parameters."""
    return _digest(
        b"namespace", [part.encode() for part in (tenant, model, tokenizer, system_prompt, decoding)]
    )


def _digest(kind: bytes, parts: Sequence[bytes]) -> bytes:
    whole = hashlib.blake2b(digest_size=16, person=kind)
    for part in parts:
        whole.update(len(part).to_bytes(8, "big") + part)  # ("ab", "c") is not ("a", "bc")
    return whole.digest()
