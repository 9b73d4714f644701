"""The rules that say who teaches whom, by name: built-in ones and a user's own."""

import functools
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from fedtandem.errors import ConfigError, did_you_mean
from fedtandem.selection.dual_min_ce import NO_TEACHER, choose_teacher
from fedtandem.user_code import import_function


class Selector(Protocol):
    """A rule that picks one teacher, or none, for every public sample."""

    def __call__(self, own_loss: Tensor, peer_losses: Tensor, generator: torch.Generator, /) -> Tensor:
        """Return the index of each sample's teacher.

        Args:
            own_loss: the learner's loss per sample in nats; (N,) float32, `inf` = not scored.
            peer_losses: the same for C peers in the order of their names; (C, N) float32.
            generator: the only source of chance the rule may use.

        Returns:
            (N,) int64 in [-1, C); -1 = NO_TEACHER.
        """
        ...


def dual_min_ce(
    own_loss: Tensor, peer_losses: Tensor, generator: torch.Generator, margin: float = 0.0
) -> Tensor:
    """The paper's rule: the best peer, where it is strictly better than the learner; (N,) int64.

    Source: FedMKT, arXiv:2406.02224v4, algorithm DualMinCE.
    """
    return choose_teacher(own_loss, peer_losses, margin)


def best_peer(own_loss: Tensor, peer_losses: Tensor, generator: torch.Generator) -> Tensor:
    """The control without selection: the best peer, however good the learner itself is; (N,) int64.

    A sample no peer scored has no teacher.
    """
    return choose_teacher(torch.full_like(own_loss, torch.inf), peer_losses)


def nobody(own_loss: Tensor, peer_losses: Tensor, generator: torch.Generator) -> Tensor:
    """The control without distillation: NO_TEACHER for every sample; (N,) int64."""
    return torch.full_like(own_loss, NO_TEACHER, dtype=torch.int64)


SELECTORS: dict[str, Selector] = {"dual_min_ce": dual_min_ce, "all": best_peer, "none": nobody}


def load_selector(reference: str, *, margin: float = 0.0) -> Selector:
    """The rule called `reference`: a built-in name, or "package.module:function".

    A rule of the user's own is wrapped so that an answer of the wrong shape, type or range is
    refused on the spot, instead of teaching the wrong samples silently.

    Args:
        reference: "dual_min_ce", "all", "none", or "package.module:function".
        margin: nats by which a peer must be better; only `dual_min_ce` knows a margin.

    Raises:
        ConfigError: no such rule, its module cannot be imported, or it is not a function.
    """
    if margin != 0 and reference != "dual_min_ce":
        raise ConfigError(
            f"selection.margin is {margin}, but the rule {reference!r} has no margin; remove it."
        )
    if reference in SELECTORS:
        return functools.partial(dual_min_ce, margin=margin) if margin else SELECTORS[reference]
    if ":" not in reference:
        hint = did_you_mean(reference, SELECTORS)
        raise ConfigError(
            f"selection.teacher is {reference!r}, which is neither a built-in rule ({', '.join(SELECTORS)}) "
            f'nor of the form "package.module:function"{hint}'
        )
    shape = "(own_loss, peer_losses, generator) -> (N,) int64"
    return checked(import_function(reference, "selection.teacher", shape), reference)


def checked(rule: Callable[[Tensor, Tensor, torch.Generator], Tensor], name: str) -> Selector:
    """`rule`, with its answer verified: (N,) int64 in [-1, C), else a ConfigError that names it."""

    def select(own_loss: Tensor, peer_losses: Tensor, generator: torch.Generator, /) -> Tensor:
        answer = rule(own_loss, peer_losses, generator)
        expected = f"expected an int64 tensor of shape {tuple(own_loss.shape)}"
        if not isinstance(answer, Tensor):
            raise ConfigError(f"teacher rule {name!r} returned a {type(answer).__name__}; {expected}.")
        if answer.dtype != torch.int64 or answer.shape != own_loss.shape:
            raise ConfigError(
                f"teacher rule {name!r} returned a {answer.dtype} tensor of shape {tuple(answer.shape)}; {expected}."
            )
        peers = peer_losses.shape[0]
        outside = answer[(answer < NO_TEACHER) | (answer >= peers)]
        if outside.numel():
            raise ConfigError(
                f"teacher rule {name!r} chose peer {int(outside[0])}, but there are {peers} peers; "
                f"return -1 (no teacher) or 0 to {peers - 1}."
            )
        unscored = (
            (answer >= 0) & peer_losses.gather(0, answer.clamp_min(0)[None])[0].isposinf() if peers else None
        )
        if unscored is not None and bool(unscored.any()):
            sample = int(unscored.nonzero()[0])
            raise ConfigError(
                f"teacher rule {name!r} chose peer {int(answer[sample])} for sample {sample}, which that peer did "
                "not score (its loss is inf); return -1 there."
            )
        return answer

    return select
