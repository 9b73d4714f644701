"""One block of drafts judged on another machine than the one that drafted it: logits in, verdict out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fedtandem.errors import InvalidMessage
from fedtandem.inference.chance import SeededChance
from fedtandem.inference.choice import Choice, checked_logits
from fedtandem.inference.row import Row
from fedtandem.inference.settings import DecodeSettings
from fedtandem.inference.uplink import Draft, SparseLaw, unpack_block
from fedtandem.inference.verify import Verdict, judge

VERIFIES = 2**32
"""Streams of chance from here on, one per place of an answer: a block that is asked about twice is judged alike."""


@dataclass(frozen=True, eq=False)
class Block:
    """What is to be judged.

    Attributes:
        ids: the whole text that stands, prompt and answer.
        place: how many of them are the answer's.
        room: tokens that may follow.
        drafts: the block, maybe empty.
        audits: so many of the last ids were kept unseen.
        settings: uplink, temperature, top_k and seed count.
    """

    ids: list[int]
    place: int
    room: int
    drafts: list[Draft]
    audits: int
    settings: DecodeSettings

    @property
    def text(self) -> list[int]:
        """What the LLM has to read."""
        return [*self.ids, *(draft.token for draft in self.drafts)]

    @property
    def last(self) -> int:
        """Of how many last tokens of `text` the logits are needed."""
        return self.audits + len(self.drafts) + 1


def drafts_of(block: bytes, uplink: str, top_k: int, vocab_size: int) -> list[Draft]:
    """`uplink.pack_block` undone, for a verifier that compares or resamples.

    Raises:
        InvalidMessage: no such block, or drafts of another uplink.
    """
    drafts = []
    for token, came in unpack_block(block, top_k, vocab_size):
        law = came if isinstance(came, SparseLaw) else None
        if (uplink == "sparse") != (law is not None):
            raise InvalidMessage(
                f"the uplink is {uplink}, but the drafts are of another kind; send them alike."
            )
        drafts.append(Draft(token, law))
    return drafts


def judge_block(block: Block, logits: Tensor, eos_id: int) -> tuple[Verdict, npt.NDArray[np.uint8]]:
    """The verdict, and which audited tokens the LLM would have chosen otherwise.

    With shared noise both sides draw from one source, so an audit's mean is at least TV(q, p), whatever q was.

    Args:
        logits: after each of the `block.last` last tokens of `block.text`; (last, V), raw.

    Returns:
        The verdict, and (audits,) uint8; () where chance decides, for two chances differ without error.
    """
    answer = block.ids[len(block.ids) - block.place :]
    row = _row(block, block.place, eos_id)
    row.pending = list(block.drafts)
    choice = _choice(block)
    scores = choice.scores(checked_logits(logits[None], [row], "target model")[0])
    verdict = judge(row, scores[block.audits :], choice)
    first = block.place - block.audits
    own = _choice(block).tokens(_row(block, first, eos_id), first, scores[: block.audits])
    if own is None:
        return verdict, np.zeros(0, np.uint8)
    kept = answer[first:]
    return verdict, np.array([token != seen for (token, _), seen in zip(own, kept, strict=True)], np.uint8)


def token_log_probs(
    logits: Tensor, tokens: Sequence[int], top: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Log-probabilities of chosen tokens and of the likeliest ones, at temperature 1.

    Args:
        logits: at each token's place, (n, V), raw.
        tokens: n of them.
        top: alternatives per token, at most V.

    Returns:
        (n,), (n · top,) ids, (n · top,).
    """
    law = logits.float().cpu().log_softmax(dim=-1)
    best = law.topk(min(top, law.shape[-1]), dim=-1)
    own = law.numpy()[np.arange(len(tokens)), list(tokens)]
    return own, best.indices.numpy().astype(np.int32).reshape(-1), best.values.numpy().reshape(-1)


def _row(block: Block, place: int, eos_id: int) -> Row:
    start = len(block.ids) - block.place
    return Row(
        index=0, prompt=block.ids[:start], prompt_bytes=0, limit=block.place + block.room, eos_id=eos_id,
        on_commit=None, written=block.ids[start : start + place],
    )  # fmt: skip


def _choice(block: Block) -> Choice:
    seed = block.settings.seed
    return Choice(block.settings, [seed], SeededChance([seed], VERIFIES + block.place))
