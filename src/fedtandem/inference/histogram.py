"""Rejections by uncertainty in 64 bins: what a client reports, and every threshold that can be read off it.

A bin b holds u in (b/64, (b+1)/64]; u = 0 is in the first. A threshold τ = j/64 then skips exactly the bins below j,
for a token is kept when u <= τ (`routing.is_sent`).

Only sent and audited tokens get a β. Their counts are kept apart, because noise for privacy must go in before the
audits are weighted, and so that counts of many clients simply add up.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from fedtandem.inference.isotonic import Floats, isotonic
from fedtandem.inference.similarity import wilson

BINS = 64
Z_ALL_BINS = 3.1624
"""Normal quantile of 1 - 0.05 / 64."""

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of one client, of a sum of clients, or of a stack of them.

    Attributes:
        tokens: all tokens; (..., 64).
        sent, sent_beta, sent_square: tokens that went to the LLM; the sums of their β and β².
        audited, audited_beta, audited_square: the same for skipped tokens that were audited.
        audit_rate: the probability with which a skipped token was audited.
    """

    tokens: Floats
    sent: Floats
    sent_beta: Floats
    sent_square: Floats
    audited: Floats
    audited_beta: Floats
    audited_square: Floats
    audit_rate: float

    def arrays(self) -> dict[str, Floats]:
        """The seven counts by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "audit_rate"}

    def sum(self) -> "Histogram":
        """A stack (C, ..., 64) added up over C."""
        return self._each(lambda a: a.sum(axis=0))

    def __getitem__(self, index: Any) -> "Histogram":
        """Part of a stack."""
        return self._each(lambda a: a[index])

    def scaled(self, factor: Floats) -> "Histogram":
        """Every count of the c-th of a stack times factor[c]."""
        return self._each(lambda a: a * factor[..., None])

    def _each(self, change: Callable[[Floats], Floats]) -> "Histogram":
        return Histogram(
            **{name: change(array) for name, array in self.arrays().items()}, audit_rate=self.audit_rate
        )

    @property
    def labelled(self) -> Floats:
        """Tokens whose β is known, (...)."""
        return np.asarray((self.sent + self.audited).sum(axis=-1))

    @property
    def audits(self) -> Floats:
        """Skipped tokens whose β is known, (...)."""
        return np.asarray(self.audited.sum(axis=-1))


def bin_of(u: npt.ArrayLike) -> Ints:
    """The bin of each uncertainty in [0, 1]."""
    values = np.asarray(u, dtype=np.float64)
    bad = ~((values >= 0) & (values <= 1))
    if bad.any():
        raise ValueError(
            f"an uncertainty is {values[bad].flat[0]}; expected [0, 1]. Check the logits it was made of."
        )
    return np.maximum(np.ceil(values * BINS).astype(np.int64) - 1, 0)


def count_feedback(
    u: npt.ArrayLike, beta: npt.ArrayLike, sent: Bools, audited: Bools, audit_rate: float
) -> Histogram:
    """Count one client's tokens.

    Args:
        u: (N,) in [0, 1].
        beta: (N,) in [-1, 1]; not looked at where a token was neither sent nor audited. Below 0 is for feedback
            that may say the SLM was the better one.
        sent: went to the LLM, (N,).
        audited: was skipped and audited, (N,).
        audit_rate: probability of an audit, in (0, 1].

    Raises:
        ValueError: a β that counts is NaN or outside [-1, 1], or a token is both sent and audited.
    """
    if not 0 < audit_rate <= 1:
        raise ValueError(f"the audit rate is {audit_rate}; expected (0, 1].")
    bins, values = bin_of(u), np.asarray(beta, dtype=np.float64)
    known = sent | audited
    if (sent & audited).any():
        raise ValueError("a token is both sent and audited; only skipped tokens are audited.")
    bad = known & ~(np.abs(values) <= 1)
    if bad.any():
        raise ValueError(f"token {int(np.argmax(bad))}: β = {values[bad][0]}; expected a value in [-1, 1].")

    def counts(which: Bools, weight: Floats | None = None) -> Floats:
        w = None if weight is None else weight[which]
        return np.bincount(bins[which], w, minlength=BINS).astype(np.float64)

    return Histogram(
        tokens=counts(np.ones(len(bins), dtype=bool)),
        sent=counts(sent), sent_beta=counts(sent, values), sent_square=counts(sent, values**2),
        audited=counts(audited), audited_beta=counts(audited, values), audited_square=counts(audited, values**2),
        audit_rate=audit_rate,
    )  # fmt: skip


def stacked(histograms: Sequence[Histogram]) -> Histogram:
    """Many clients' counts as one stack, (C, ..., 64).

    Raises:
        ValueError: none, or audited at different rates: their audits weigh differently.
    """
    rates = {h.audit_rate for h in histograms}
    if len(rates) != 1:
        raise ValueError(
            f"histograms with the audit rates {sorted(rates)} cannot be added; one round has one rate."
        )
    names = histograms[0].arrays()
    return Histogram(
        **{name: np.stack([getattr(h, name) for h in histograms]) for name in names}, audit_rate=rates.pop()
    )


def mean_beta(h: Histogram) -> tuple[Floats, Floats]:
    """β̄ per bin, made isotonic in u, and the weight behind each bin.

    Returns:
        (..., 64) each; β̄ is NaN where nothing at all is labelled.

    Source: specification of FedHLM, section 7 (choice).
    """
    weight = h.sent + h.audited / h.audit_rate
    total = h.sent_beta + h.audited_beta / h.audit_rate
    raw = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
    return isotonic(raw, weight), weight


def upper_bounds(h: Histogram) -> Floats:
    """The mean β of each bin is below this, all 64 together with 95 % confidence; one scope's (64,) counts.

    Wilson's interval, which for values inside [0, 1] is at least as wide as their own spread asks for, at 1 - 0.05/64
    per bin. Bins do not lend each other strength: a bound must also hold where the SLM is confident and wrong. 1 where
    nothing is known.

    Source: specification of FedHLM, section 9 (`bounded` needs calibrated upper bounds); the construction is a choice.
    """
    n = h.sent + h.audited
    total = np.clip(h.sent_beta + h.audited_beta, 0, n)
    return wilson(total, n, z=Z_ALL_BINS)[1]


def best_bin(tokens: Floats, beta: Floats, price: npt.ArrayLike) -> Ints:
    """The smallest j that minimises Σ_{b<j} N_b β̄_b + λ Σ_{b>=j} N_b.

    Args:
        tokens, beta: N_b and β̄_b, (..., 64).
        price: λ, a scalar or (...).

    Returns:
        (...) in 0..64; 64 sends nothing.

    Source: specification of FedHLM, section 7; equation (4) for κ → ∞.
    """
    # Against j = 0, taking bin b back from the LLM costs N_b (β̄_b - λ).
    steps = tokens * (beta - np.asarray(price, dtype=np.float64)[..., None])
    start = np.zeros((*steps.shape[:-1], 1))
    return np.asarray(np.argmin(np.concatenate([start, np.cumsum(steps, axis=-1)], axis=-1), axis=-1))


def bin_for_share(tokens: Floats, share: float) -> int:
    """The smallest j that sends at most this share of the tokens, (64,) counts; 64 can always be had."""
    sends = np.concatenate([[tokens.sum()], tokens.sum() - np.cumsum(tokens)])
    return int(np.argmax(sends <= share * tokens.sum() + 1e-9))


def bin_for_error(tokens: Floats, beta: Floats, error: float) -> int:
    """The largest j, so the fewest calls, with Σ_{b<j} N_b β̄_b <= error · N; (64,) each.

    β̄ rises with u, so what is skipped first costs least; j = 0 skips nothing and can always be had.
    """
    lost = np.concatenate([[0.0], np.cumsum(tokens * np.nan_to_num(beta))])
    return int(np.flatnonzero(lost <= error * tokens.sum() + 1e-9)[-1])


def threshold_of(j: npt.ArrayLike) -> Floats:
    """τ, the lower edge of bin j."""
    return np.asarray(np.asarray(j, dtype=np.float64) / BINS)


def share_sent(tokens: Floats, tau: npt.ArrayLike) -> Floats:
    """At most this share of the tokens is sent at τ: a bin that τ cuts counts wholly; (..., 64) and (...) to (...)."""
    below = np.floor(np.asarray(tau, dtype=np.float64) * BINS)[..., None] > np.arange(BINS)
    total = tokens.sum(axis=-1)
    kept = np.where(below, tokens, 0.0).sum(axis=-1)
    return np.asarray(np.divide(total - kept, total, out=np.zeros_like(total), where=total > 0))


def error_kept(tokens: Floats, beta: Floats, tau: npt.ArrayLike) -> Floats:
    """At most this mean β is let through at τ: a bin that τ cuts counts wholly, unless it would help.

    Args:
        tokens, beta: (..., 64).
        tau: (...).
    """
    edge = np.asarray(tau, dtype=np.float64)[..., None] * BINS
    whole, cut = np.floor(edge) > np.arange(BINS), np.ceil(edge) > np.arange(BINS)
    known = np.nan_to_num(beta)
    lost = np.where(whole, tokens * known, np.where(cut, tokens * np.maximum(known, 0), 0.0)).sum(axis=-1)
    total = tokens.sum(axis=-1)
    return np.asarray(np.divide(lost, total, out=np.zeros_like(total), where=total > 0))


def bootstrap_bins(h: Histogram, price: float, generator: np.random.Generator, *, draws: int = 200) -> Ints:
    """`best_bin` again on redrawn label sums; one scope's (64,) counts.

    Each bin's sum is redrawn as a normal with the spread its squares show, one pooled label added, since a bin with
    two equal labels does not know its spread.

    Returns:
        (draws,) bins. Their 2.5 and 97.5 % quantiles are the interval of τ.
    """
    drawn = {}
    for kind in ("sent", "audited"):
        count, total, square = (getattr(h, f"{kind}{part}") for part in ("", "_beta", "_square"))
        mean = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
        within = np.maximum(square - count * mean**2, 0)
        pooled = within.sum() / max(count.sum() - (count > 0).sum(), 1.0)
        spread = np.sqrt(count * (within + pooled) / np.maximum(count, 1))
        noise = generator.standard_normal((draws, BINS))
        drawn[kind] = np.clip(total + spread * noise, -count, count)
    wide = {name: np.broadcast_to(array, (draws, BINS)) for name, array in h.arrays().items()}
    wide |= {"sent_beta": drawn["sent"], "audited_beta": drawn["audited"]}
    again = Histogram(**wide, audit_rate=h.audit_rate)
    return best_bin(again.tokens, mean_beta(again)[0], price)
