"""Two tokenizers, one answer: drafts cross as text (SLEM) or as the tokens both vocabularies share (TLI).

SLEM: the SLM drafts in its own tokens, the text is read again by the LLM's tokenizer, and the LLM keeps what equals
its own choices. TLI: the SLM's law is masked to the shared tokens, renormalised and written in the LLM's ids; from
there on it is a law over the LLM's vocabulary like any other.

Source: Timor et al. 2025, "Accelerating LLM inference with lossless speculative decoding algorithms for
heterogeneous vocabularies" (string-level exact match; token-level intersection); FedHLM spec, section 9.
"""

import codecs
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedtandem.alignment.card import VocabularyCard
from fedtandem.errors import ConfigError, ModelError, VocabularyMismatch
from fedtandem.inference.choice import checked_logits
from fedtandem.inference.drafting import NextTokenModel, Uncertainty, doubts
from fedtandem.inference.routing import is_sent
from fedtandem.inference.row import Row
from fedtandem.inference.settings import DecodeSettings
from fedtandem.inference.uplink import Draft, pack_text_block

LOOK_BEHIND = 10
"""Tokens at the end of an answer that may be cut otherwise once more text follows."""

MIN_SHARED_MASS = 0.5
"""Of the SLM's law, on the user's prompts: below it, TLI draws mostly what the SLM did not mean."""


class Speller(Protocol):
    """A tokenizer, as far as bridging needs one; `models.tokenizer.TextTokenizer` is one."""

    @property
    def card(self) -> VocabularyCard:
        """Bytes and roles of its tokens."""
        ...

    def encode_prompt(self, prompt: str, *, chat_template: bool = False) -> npt.NDArray[np.int32]:
        """A prompt as the beginning of a generation."""
        ...

    def continue_ids(self, text: str) -> npt.NDArray[np.int32]:
        """Ids of text that follows other text."""
        ...


def whole_text(spelled: bytes) -> tuple[str, bytes]:
    """The text of some bytes, and the last few that wait for the rest of their character.

    Bytes that no continuation can make UTF-8 become U+FFFD.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(spelled)
    return text, decoder.getstate()[0]


def spell(card: VocabularyCard, ids: Sequence[int]) -> bytes:
    """The bytes of tokens; marks spell nothing.

    Raises:
        ModelError: an id outside the vocabulary.
    """
    try:
        return b"".join(card.token_bytes[token] or b"" for token in ids)
    except IndexError as error:
        raise ModelError(
            f"a model wrote the token id {max(ids)}, its tokenizer ends at {len(card) - 1}; load the tokenizer that "
            "the model was trained with."
        ) from error


class Reading:
    """Growing answers in another tokenizer's ids; only the end of an answer is read again each time.

    Args:
        speller: the tokenizer that reads.
        prompts: what stands before each answer, in its ids.
        limit: tokens its model's context holds; the beginning of longer texts is left out.
    """

    def __init__(self, speller: Speller, prompts: Sequence[Sequence[int]], limit: int | None) -> None:
        self._speller = speller
        self._prompts = [[int(token) for token in prompt] for prompt in prompts]
        self._limit = limit
        self._read: dict[int, list[int]] = {}

    def ids(self, row: int, text: str, then: int = 0) -> list[int]:
        """Prompt and answer, with room for `then` more tokens."""
        spelled = text.encode()
        kept = self._read.get(row, [])[:-LOOK_BEHIND]
        head = spell(self._speller.card, kept)
        # Taken back, or a token that spells no text of its own: read again from further in front.
        while kept and not (spelled.startswith(head) and _begins_character(spelled, len(head))):
            kept = kept[:-LOOK_BEHIND]
            head = spell(self._speller.card, kept)
        rest = self._speller.continue_ids(spelled[len(head) :].decode())
        self._read[row] = kept = [*kept, *map(int, rest)]
        return self._window([*self._prompts[row], *kept], then)

    def forget(self, row: int) -> None:
        """This row is finished."""
        self._read.pop(row, None)

    def _window(self, ids: list[int], then: int) -> list[int]:
        if self._limit is None or len(ids) + then <= self._limit:
            return ids
        # In steps of half a context, so that the window rarely moves and the cache keeps its worth.
        step = max(1, self._limit // 2)
        return ids[-(-(len(ids) + then - self._limit) // step) * step :]


def _begins_character(spelled: bytes, place: int) -> bool:
    """Whether no UTF-8 character lies across this place."""
    return place >= len(spelled) or spelled[place] & 0b1100_0000 != 0b1000_0000


# -- SLEM ---------------------------------------------------------------------------------------------------------


class TextDrafter:
    """SLEM: blocks of text, in the LLM's tokenisation. Only for mode `exact`, where the LLM reads every token.

    Drafts greedily: a point is what equals another law's sample most often. The end of the answer so far is read
    afresh by the SLM's tokenizer before each block, so that its tokens are those it would see in running text.

    Args:
        model: the SLM, over its own vocabulary.
        prompts: the prompts in the SLM's ids.
    """

    def __init__(
        self,
        model: NextTokenModel,
        speller: Speller,
        target_speller: Speller,
        prompts: Sequence[Sequence[int]],
        settings: DecodeSettings,
        uncertainty: Uncertainty,
    ) -> None:
        self._model = model
        self._speller = speller
        self._target = target_speller
        self._reading = Reading(speller, prompts, model.limit)
        self._settings = settings
        self._uncertainty = uncertainty

    def forget(self, row: int) -> None:
        """This row is finished."""
        self._model.forget(row)
        self._reading.forget(row)

    def draft(self, rows: Sequence[Row]) -> None:
        """Fill every row's block."""
        heads: dict[int, list[int]] = {}
        blocks: dict[int, list[int]] = {}
        rows = [row for row in rows if not row.draft_ends]  # a peer's guess goes first
        for row in rows:
            text, held = whole_text(spell(self._target.card, row.written))
            # Half a character has no tokens here: the LLM ends it alone, with an empty block.
            if not held and row.room > 1:
                heads[row.index] = self._reading.ids(row.index, text, self._settings.block)
                blocks[row.index] = []
        eos_id = self._speller.card.roles["eos"]
        drafting = [row for row in rows if row.index in blocks]
        while drafting:
            ids = [heads[row.index] + blocks[row.index] for row in drafting]
            answers = self._model.logits([row.index for row in drafting], ids, [1] * len(drafting))
            logits = checked_logits(torch.cat(answers), drafting, "draft model")
            going = []
            unsure = doubts(self._uncertainty, logits)
            for row, token, u in zip(drafting, logits.argmax(dim=-1).tolist(), unsure, strict=True):
                row.record.slm_passes += 1
                block = blocks[row.index]
                block.append(token)
                if (
                    token != eos_id
                    and not is_sent(u, self._settings.tau)
                    and len(block) < self._settings.block
                ):
                    going.append(row)
            drafting = going
        for row in rows:
            self._hand_over(row, blocks.get(row.index, []), eos_id)

    def _hand_over(self, row: Row, block: list[int], eos_id: int) -> None:
        ends = bool(block) and block[-1] == eos_id
        text, _ = whole_text(spell(self._speller.card, block))
        tokens = [int(token) for token in self._target.continue_ids(text)] if text else []
        if ends:
            tokens.append(row.eos_id)
        row.pending = [Draft(token) for token in tokens[: max(0, row.room - 1)]]
        row.block_bytes = len(pack_text_block(text, ends))


# -- TLI ----------------------------------------------------------------------------------------------------------


def shared_tokens(client: VocabularyCard, target: VocabularyCard) -> tuple[Tensor, Tensor]:
    """The tokens both vocabularies have: equal bytes, and the EOS; (S,) client ids and (S,) target ids, int64.

    Where one vocabulary spells the same bytes twice, its lowest id stands for them.
    """
    by_bytes: dict[bytes, int] = {}
    for token, spelled in enumerate(target.token_bytes):
        if spelled:
            by_bytes.setdefault(spelled, token)
    pairs: dict[int, int] = {}
    for token, spelled in enumerate(client.token_bytes):
        if spelled and spelled in by_bytes:
            pairs.setdefault(by_bytes[spelled], token)
    if "eos" in client.roles and "eos" in target.roles:
        pairs[target.roles["eos"]] = client.roles["eos"]
    targets = sorted(pairs)
    return torch.tensor([pairs[token] for token in targets], dtype=torch.int64), torch.tensor(
        targets, dtype=torch.int64
    )


def shared_mass(logits: Tensor, client_ids: Tensor) -> Tensor:
    """How much of the SLM's law lies on shared tokens; (..., V) raw logits to (...,) float64."""
    return logits.double().softmax(dim=-1)[..., client_ids].sum(dim=-1)


class SharedVocabularyModel:
    """TLI: the SLM as a model over the LLM's vocabulary, impossible outside the shared tokens.

    Args:
        model: the SLM, over its own vocabulary.
        prompts: the prompts in the SLM's ids.
        target_lengths: length of each prompt in the LLM's ids: what follows is the answer.

    Raises:
        VocabularyMismatch: no token is shared.
    """

    def __init__(
        self,
        model: NextTokenModel,
        speller: Speller,
        target_speller: Speller,
        prompts: Sequence[Sequence[int]],
        target_lengths: Sequence[int],
    ) -> None:
        self.client_ids, self.target_ids = shared_tokens(speller.card, target_speller.card)
        if len(self.client_ids) == 0:
            raise VocabularyMismatch(
                "the two tokenizers share no token: TLI has nothing to draft with. Use bridge slem."
            )
        self._model = model
        self._target = target_speller
        self._reading = Reading(speller, prompts, model.limit)
        self._lengths = list(target_lengths)
        self._client_of = dict(zip(self.target_ids.tolist(), self.client_ids.tolist(), strict=True))

    @property
    def vocab_size(self) -> int:
        """V of the LLM."""
        return len(self._target.card)

    @property
    def limit(self) -> int | None:
        """None: texts longer than the SLM's context lose their beginning."""
        return None

    def forget(self, row: int) -> None:
        """This row is finished."""
        self._model.forget(row)
        self._reading.forget(row)

    def logits(self, rows: Sequence[int], ids: Sequence[Sequence[int]], last: Sequence[int]) -> list[Tensor]:
        """After the last token only: places inside a text have no fixed counterpart in another tokenisation.

        Raises:
            ConfigError: more than the last place was asked for.
        """
        if any(count != 1 for count in last):
            raise ConfigError(
                f"a bridged model answers for the last token only, not for the last {max(last)}."
            )
        own = [self._own_ids(row, text) for row, text in zip(rows, ids, strict=True)]
        return [self._crossed(answer) for answer in self._model.logits(rows, own, last)]

    def _own_ids(self, row: int, text: Sequence[int]) -> list[int]:
        answer = [int(token) for token in text[self._lengths[row] :]]
        read, held = whole_text(spell(self._target.card, answer))
        half = self._half(answer, held)
        return [*self._reading.ids(row, read, len(half)), *half]

    def _half(self, answer: list[int], held: bytes) -> list[int]:
        """Half a character in the SLM's tokens, where the last tokens are shared and spell just that."""
        tokens: list[int] = []
        for token in reversed(answer):
            if not held or token not in self._client_of:
                break
            spelled = self._target.card.token_bytes[token] or b""
            if not held.endswith(spelled):
                break
            held = held[: len(held) - len(spelled)]
            tokens.insert(0, self._client_of[token])
        return [] if held else tokens

    def _crossed(self, logits: Tensor) -> Tensor:
        crossed = torch.full((*logits.shape[:-1], self.vocab_size), -torch.inf, dtype=torch.float64)
        crossed[..., self.target_ids] = logits.to("cpu", torch.float64)[..., self.client_ids]
        return crossed


def refuse_too_little_shared(mass: float) -> None:
    """`exact` by TLI with a law that is mostly masked would be exact and useless: every second draft is refused.

    Raises:
        VocabularyMismatch: less than MIN_SHARED_MASS is shared.
    """
    if mass < MIN_SHARED_MASS:
        raise VocabularyMismatch(
            f"only {mass:.0%} of the draft model's probability lies on tokens that both tokenizers have, at least "
            f"{MIN_SHARED_MASS:.0%} are needed for exact sampling by TLI. Use bridge slem, or a draft model with the "
            "target's tokenizer."
        )
