"""Two models write one answer: the SLM drafts, the LLM verifies. Modes, blocks, and what each exchange costs.

    exact     draft until u > tau or the block is full; verify all of it; show nothing before   law = the LLM's
    bounded   show tokens with u <= tau while the upper bounds of their beta sum to <= eps      sequence TV <= eps
    fedhlm    show tokens with u <= tau, verify the rest                                        error measured
    local     the SLM alone
    cloud     the LLM alone

In `bounded` and `fedhlm` a block begins with a token that must be verified and goes on through the next doubtful
one: its sure tokens cost no further pass of the LLM.

Source: FedHLM, arXiv:2507.00082; speculative sampling (Leviathan et al. 2023); the modes are choices of the spec.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from fedtandem.errors import ConfigError, DataError, ModelError
from fedtandem.inference.chance import Chance, SeededChance
from fedtandem.inference.choice import Choice
from fedtandem.inference.drafting import Drafter, NextTokenModel, TokenDrafter, Uncertainty
from fedtandem.inference.peer_tokens import Peers
from fedtandem.inference.record import Record
from fedtandem.inference.row import OnCommit, Row
from fedtandem.inference.settings import PEER_USES, DecodeSettings
from fedtandem.inference.speculative import accept_probability, residual_law
from fedtandem.inference.uplink import Draft
from fedtandem.inference.verify import Verifier, as_verifier

__all__ = ["DecodeSettings", "Decoded", "accept_probability", "decode", "residual_law"]


@dataclass(frozen=True)
class Decoded:
    """One answer: its new ids, closing EOS included, and what it took."""

    ids: list[int]
    record: Record


def decode(
    draft: NextTokenModel | Drafter | None,
    target: NextTokenModel | Verifier | None,
    prompts: Sequence[Sequence[int]],
    settings: DecodeSettings,
    *,
    eos_id: int,
    uncertainty: Uncertainty | None = None,
    beta_upper: Callable[[float], float] | None = None,
    chance: Chance | None = None,
    peers: Peers | None = None,
    on_commit: OnCommit | None = None,
    on_audit: Callable[[int, float, float], None] | None = None,
    prompt_bytes: Sequence[int] | None = None,
    spell: Callable[[int], bytes] | None = None,
) -> list[Decoded]:
    """Continue prompts by two models that share a vocabulary.

    Args:
        draft: the SLM, or another source of blocks; not needed in mode `cloud`.
        target: the LLM, or someone who asks it; not needed in mode `local`.
        prompts: B >= 1 texts as ids, none empty.
        eos_id: ends an answer; -1 if nothing does.
        uncertainty: logits (R, V) -> u (R,); needed wherever tau decides.
        beta_upper: u -> an upper bound of TV(q, p) where the SLM has this uncertainty (for `greedy` of the chance that
            the LLM would choose otherwise: both laws are one-hot); needed in `bounded`.
        chance: decides drafts, refusals and resamples of `scalar` and `sparse`; the seed's own by default.
        peers: what the LLM wrote for others. `settings.peer` says how it is used: as drafts, tried before the SLM's
            (mode `exact`; the law stays the LLM's whatever they say), or as answers to uncertain tokens (`fedhlm`; in
            `bounded` charged with `Known.error`). Finished answers are handed to it.
        on_commit: called with (prompt, its new tokens, their sources) as soon as they are final; True ends the answer.
        on_audit: called with (prompt, u, error) of every kept token that is measured: what upper bounds are made of.
        prompt_bytes: size of each prompt on the wire; 4 B per token by default.
        spell: bytes of a token, where the client does not know the LLM's ids: its tokens then travel as bytes.

    Returns:
        One answer per prompt, in order, shorter where a context is full. Deterministic for a seed, whatever the
        batch.

    Raises:
        ConfigError: a model, `uncertainty` or `beta_upper` is missing, or a bound is outside [0, 1].
        DataError: no prompt, or an empty one.
        ModelError: logits that are NaN, two vocabularies of different sizes, or a prompt that fills a context.
    """
    mode = settings.mode
    if len(prompts) == 0:
        raise DataError("there is no prompt to continue; give at least one.")
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise DataError(f"prompt {i} has no tokens; a model needs at least one to go on from.")
    if target is None and mode != "local":
        raise ConfigError(f"mode {mode} needs the LLM: give a target model, or use mode local.")
    if draft is None and mode != "cloud":
        raise ConfigError(f"mode {mode} needs the SLM: give a draft model, or use mode cloud.")
    if peers is not None and mode not in PEER_USES[settings.peer]:
        raise ConfigError(
            f"peer {settings.peer} goes with mode {' or '.join(PEER_USES[settings.peer])}, not {mode}."
        )
    if mode == "bounded" and beta_upper is None:
        raise ConfigError("mode bounded needs beta_upper: calibrated upper bounds of beta by uncertainty.")
    target = None if mode == "local" else target
    draft = None if mode == "cloud" else draft
    seeds = [settings.seed + i for i in range(len(prompts))]
    choice = Choice(settings, seeds, chance or SeededChance(seeds))
    drafter: Drafter | None = None
    if draft is not None:
        answering = peers if settings.peer == "answer" else None
        drafter = _as_drafter(draft, target, settings, choice, uncertainty, beta_upper, answering)
    verifier: Verifier | None = None
    if target is not None:
        verifier = as_verifier(target, choice)
    rows = [
        Row(
            index=i,
            prompt=[int(token) for token in prompt],
            prompt_bytes=4 * len(prompt) if prompt_bytes is None else prompt_bytes[i],
            limit=_room(i, len(prompt), settings.max_new_tokens, (draft, target)),
            eos_id=eos_id,
            on_commit=on_commit,
            on_audit=on_audit,
            spell=spell,
        )
        for i, prompt in enumerate(prompts)
    ]
    for row in rows:
        row.record.charged = None if beta_upper is None or mode not in ("bounded", "fedhlm") else 0.0
    left = rows
    while left:
        if peers is not None and mode == "exact":
            for row in left:
                _take_drafts(row, peers, settings.block)
        if drafter is not None:
            drafter.draft(left)
        waiting = [row for row in left if not row.is_done]
        if waiting and verifier is not None:
            verifier.verify(waiting)
        for row in left:
            if row.is_done:
                if settings.audit == "all" and verifier is not None:
                    verifier.audit_the_rest(row)
                if peers is not None:
                    peers.learn(row.index, row.written, [source.is_resolved for source in row.sources])
                for model in (drafter, verifier):
                    if model is not None:
                        model.forget(row.index)
        left = [row for row in left if not row.is_done]
    return [Decoded(row.written, row.record) for row in rows]


def _as_drafter(
    draft: "NextTokenModel | Drafter",
    target: NextTokenModel | Verifier | None,
    settings: DecodeSettings,
    choice: Choice,
    uncertainty: Uncertainty | None,
    beta_upper: Callable[[float], float] | None,
    peers: Peers | None,
) -> Drafter:
    if hasattr(draft, "draft"):  # by its method: isinstance on a Protocol costs as much as a token
        return cast(Drafter, draft)
    if target is not None and draft.vocab_size != target.vocab_size:
        raise ModelError(
            f"the draft model has {draft.vocab_size} tokens, the target model {target.vocab_size}: ids do not mean the "
            "same. Generate from text, through a bridge between the tokenizers."
        )
    if uncertainty is None and settings.mode != "local":
        raise ConfigError(f"mode {settings.mode} needs an uncertainty: a function of the SLM's logits.")
    gate = None if settings.mode == "local" else uncertainty
    return TokenDrafter(draft, settings, choice, gate, beta_upper, peers)


def _room(i: int, prompt_tokens: int, max_new_tokens: int, models: Sequence[object]) -> int:
    """How many tokens may be written before a context is full."""
    # The last token is written, never read.
    stated: list[int | None] = [getattr(model, "limit", None) for model in models]
    limits = [limit + 1 for limit in stated if limit is not None]
    room = min([max_new_tokens, *(limit - prompt_tokens for limit in limits)])
    if room < 1:
        raise ModelError(
            f"prompt {i} has {prompt_tokens} tokens and leaves no room in a context of {min(limits) - 1}; shorten it."
        )
    return room


def _take_drafts(row: Row, peers: Peers, block: int) -> None:
    """What peers know as this row's block. It comes without a law, so the LLM compares it with its own choice."""
    known = peers.known(row.index, row.written)
    tokens = [] if known is None else known.tokens
    row.pending = [Draft(token) for token in tokens[: max(0, min(block, row.room - 1))]]
    row.draft_ends = bool(row.pending)
    row.record.peer_drafted += len(row.pending)
    if row.pending and row.spell is not None:
        row.block_bytes = 1 + sum(len(row.spell(draft.token)) for draft in row.pending)
