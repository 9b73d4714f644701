"""The SLM's side: draft a block, and keep at once what the mode allows to keep."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedtandem.errors import ConfigError
from fedtandem.inference.choice import Choice, checked_logits
from fedtandem.inference.peer_tokens import Peers
from fedtandem.inference.routing import is_sent
from fedtandem.inference.row import Row, Source
from fedtandem.inference.settings import DecodeSettings
from fedtandem.inference.uncertainty import top_logits
from fedtandem.inference.uplink import SCALAR_BITS, SPARSE_BITS, Draft, SparseLaw, sparse_law

Uncertainty = Callable[[Tensor], Tensor]
"""Raw logits (R, V) -> u (R,) in [0, 1]. It may look at the prefix's logits only, not at the draft: with shared
noise a gate that knows the draft would bias what is verified."""


AUDIT_VALUES = 2**22
"""Probabilities kept per answer for an audit in passing: 16 MiB, the laws of 131 tokens of 32,000."""


class NextTokenModel(Protocol):
    """A model over one vocabulary, reading B rows of tokens. Its answers depend on `ids` alone; what it keeps
    between calls only saves time."""

    @property
    def vocab_size(self) -> int:
        """V."""
        ...

    @property
    def limit(self) -> int | None:
        """Tokens its context holds; None if nothing says."""
        ...

    def logits(self, rows: Sequence[int], ids: Sequence[Sequence[int]], last: Sequence[int]) -> list[Tensor]:
        """One forward pass: per row the logits after each of the last `last` tokens of its whole text `ids`;
        list of (last, V), raw, on any device."""
        ...

    def forget(self, row: int) -> None:
        """This row is finished."""
        ...


class Drafter(Protocol):
    """Who fills the blocks."""

    def draft(self, rows: Sequence[Row]) -> None:
        """Bring every row to its end, or to a block that has to be verified."""
        ...

    def forget(self, row: int) -> None:
        """This row is finished."""
        ...


def doubts(uncertainty: Uncertainty, logits: Tensor) -> list[float]:
    """u of each of R laws; logits (R, V).

    Raises:
        ConfigError: the function gives something else than one finite number per law.
    """
    # A law bridged from another vocabulary forbids the same tokens everywhere: they are not doubt.
    if np.minimum.reduce(logits.numpy(), axis=None) == -math.inf:
        logits = logits[:, logits.isfinite().any(dim=0)]
    u = uncertainty(logits)
    values: list[float] = u.tolist() if u.shape == logits.shape[:1] else []
    if len(values) != len(logits) or not all(map(math.isfinite, values)):
        raise ConfigError(
            f"the uncertainty gave shape {tuple(u.shape)} for logits {tuple(logits.shape)}, or a NaN; it must give "
            "one finite number per row."
        )
    return values


class TokenDrafter:
    """Drafts token by token, in the LLM's own ids; keeps what the mode allows."""

    def __init__(
        self,
        model: NextTokenModel,
        settings: DecodeSettings,
        choice: Choice,
        uncertainty: Uncertainty | None,
        beta_upper: Callable[[float], float] | None,
        peers: Peers | None = None,
    ) -> None:
        self._model = model
        self._peers = peers
        self._settings = settings
        self._choice = choice
        self._uncertainty = uncertainty
        self._beta_upper = beta_upper
        self._may_keep = settings.mode in ("bounded", "fedhlm", "local")

    def forget(self, row: int) -> None:
        """This row is finished."""
        self._model.forget(row)

    def draft(self, rows: Sequence[Row]) -> None:
        """Bring every row to its end, or to a block that has to be verified."""
        drafting = [row for row in rows if not self._is_ready(row)]
        while drafting:
            ids = [row.ids for row in drafting]
            answers = self._model.logits([row.index for row in drafting], ids, [1] * len(drafting))
            laws = answers[0] if len(answers) == 1 else torch.cat(answers)
            logits = checked_logits(laws, drafting, "draft model")  # (R, V)
            u = [0.0] * len(drafting) if self._uncertainty is None else doubts(self._uncertainty, logits)
            scores = self._choice.scores(logits)
            for i, row in enumerate(drafting):
                row.record.slm_passes += 1
                self._add(row, scores[i], u[i])
            drafting = [row for row in drafting if not self._is_ready(row)]

    def _is_ready(self, row: Row) -> bool:
        if row.is_done or row.draft_ends or len(row.pending) >= self._settings.block:
            return True
        # The LLM writes one token of its own after a block: the last place is never worth a draft for it.
        return row.room <= 1 and (bool(row.pending) or not self._may_keep)

    def _add(self, row: Row, scores: Tensor, u: float) -> None:
        """One more token of the SLM: shown at once, or pending."""
        settings = self._settings
        if not row.pending and self._may_keep and (settings.mode == "local" or not is_sent(u, settings.tau)):
            bound = 0.0 if self._beta_upper is None or settings.mode == "local" else self._bound(u)
            # The spec's rule for `bounded`: verify *before* the sum exceeds eps.
            if settings.mode != "bounded" or (
                settings.eps is not None and row.charged + bound <= settings.eps
            ):
                self._keep(row, scores, u, bound)
                return
        if self._peers is not None and not row.pending and self._takes_answer(row, self._peers, u):
            return
        draft = replace(self._drawn(row, scores), u=u)
        row.pending.append(draft)
        opens = self._may_keep and len(row.pending) == 1
        row.draft_ends = draft.token == row.eos_id or bool(is_sent(u, settings.tau) and not opens)

    def _takes_answer(self, row: Row, peers: Peers, u: float) -> bool:
        """Show the token that the LLM wrote in this place for a peer, if it did and the error budget has room."""
        known = peers.known(row.index, row.written)
        if known is None or not known.resolved[0]:
            return False
        if self._settings.mode == "bounded":
            if self._settings.eps is None or row.charged + known.error > self._settings.eps:
                return False
            row.charged += known.error
            row.record.charged = row.charged
        row.record.peer += 1
        if self._settings.uplink == "greedy" and self._settings.audit != "none":
            row.unaudited.append((len(row.written), None, 0.0))
        row.commit([known.tokens[0]], [Source("peer", u)])
        return True

    def _drawn(self, row: Row, scores: Tensor) -> Draft:
        """A draft that will be verified, with what verification needs."""
        if self._settings.uplink in ("greedy", "shared_noise"):
            return Draft(self._choice.token(row, len(row.written) + len(row.pending), scores))
        bits = SCALAR_BITS if self._settings.uplink == "scalar" else SPARSE_BITS
        # Truncate and round first, then draw: the server verifies with the law that was drawn from.
        values, ids = top_logits(scores, self._settings.top_k)
        law = sparse_law(values.double().softmax(dim=-1), len(values), bits)
        chosen = self._choice.chance.choose(row.index, law.probabilities)
        law = SparseLaw(ids[law.token_ids], law.weights, bits)
        return Draft(int(law.token_ids[chosen]), law)

    def _keep(self, row: Row, scores: Tensor, u: float, bound: float) -> None:
        token = self._choice.token(row, len(row.written), scores)
        row.charged += bound
        if row.record.charged is not None:
            row.record.charged = row.charged
        row.record.kept += 1
        if self._is_audited(row, scores.shape[-1]):
            row.unaudited.append((len(row.written), scores.softmax(dim=-1), u))
        row.commit([token], [Source("kept", u)])

    def _is_audited(self, row: Row, vocab_size: int) -> bool:
        audit = "none" if self._settings.mode == "local" else self._settings.audit
        # Whole laws wait for the LLM's next pass: a long sure run over a large vocabulary would fill the memory.
        return audit == "all" or (audit == "passing" and len(row.unaudited) * vocab_size < AUDIT_VALUES)

    def _bound(self, u: float) -> float:
        bound = float(self._beta_upper(u)) if self._beta_upper is not None else 0.0
        if not 0 <= bound <= 1:
            raise ConfigError(f"beta_upper({u:.3f}) is {bound}; an upper bound of beta lies in [0, 1].")
        return bound
