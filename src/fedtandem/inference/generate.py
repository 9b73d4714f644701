"""Text in, text out: prompts for two language models, a bridge where their tokenizers differ, streamed text."""

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, cast

import torch
from torch import Tensor

from fedtandem.errors import ConfigError, DataError
from fedtandem.inference.bridge import (
    SharedVocabularyModel,
    Speller,
    TextDrafter,
    refuse_too_little_shared,
    shared_mass,
    shared_tokens,
    spell,
)
from fedtandem.inference.decode import Decoded, decode
from fedtandem.inference.drafting import Drafter, NextTokenModel, Uncertainty
from fedtandem.inference.peer_tokens import Peers, PeerSource
from fedtandem.inference.record import Record
from fedtandem.inference.row import OnCommit, Source
from fedtandem.inference.settings import DecodeSettings
from fedtandem.inference.verify import Verifier

Bridge = Literal["auto", "slem", "tli"]
OnText = Callable[[int, str], None]


class Party(Protocol):
    """One language model with its tokenizer; `models.language_model.LanguageModel` is one."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def tokenizer(self) -> Speller:
        """Its own."""
        ...

    def cached_rows(self, n_rows: int) -> NextTokenModel | Verifier:
        """The model reading so many texts at once; of an LLM elsewhere, who asks it."""
        ...


@dataclass(frozen=True)
class Generation:
    """One answer.

    Attributes:
        prompt: as given.
        text: what was written, without the EOS.
        ids: of the target model (of the draft model in mode `local`), closing EOS included.
        bridge: "same", "slem" or "tli": how drafts crossed between the tokenizers.
        record: what it took.
    """

    prompt: str
    text: str
    ids: list[int]
    bridge: str
    record: Record

    def agrees_with(self, other: "Generation") -> bool:
        """Equal ids before the first place, in either answer, where rounding may decide what the LLM writes."""
        ties = [tie for tie in (self.record.first_near_tie, other.record.first_near_tie) if tie is not None]
        end = min(ties, default=None)
        return self.ids[:end] == other.ids[:end]


class TextStream:
    """Bytes of committed tokens to text, whole characters at a time; the chunks make up the whole answer."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.text = ""

    def add(self, spelled: bytes, final: bool = False) -> str:
        """The characters that are complete now; with `final`, whatever is left."""
        chunk = self._decoder.decode(spelled, final)
        self.text += chunk
        return chunk


def generate(
    draft: Party | None,
    target: Party | None,
    prompts: Sequence[str],
    settings: DecodeSettings,
    *,
    uncertainty: Uncertainty | None = None,
    beta_upper: Callable[[float], float] | None = None,
    bridge: Bridge = "auto",
    chat_template: bool = False,
    batch_size: int = 32,
    peers: PeerSource | None = None,
    on_text: OnText | None = None,
    on_tokens: OnCommit | None = None,
    on_audit: Callable[[int, float, float], None] | None = None,
) -> list[Generation]:
    """Answer prompts with two models.

    Args:
        draft: the SLM; None in mode `cloud`.
        target: the LLM; None in mode `local`.
        uncertainty, beta_upper: as in `decode`.
        bridge: between different tokenizers: text compared by equality (`slem`, mode `exact` only), shared tokens
            (`tli`); `auto` takes `slem` in `exact`, else `tli`.
        chat_template: each side wraps the prompt in its own template.
        batch_size: prompts that go through the models together; changes no answer but by rounding.
        peers: answers of the target to prompts of others; `settings.peer` says how they are used. What the target
            resolves here is added, batch by batch.
        on_text: called with (prompt, new text); its chunks make up each answer, and none is ever taken back.
        on_tokens: called with (prompt, new tokens of the writing model, their sources) before `on_text`; True ends
            that answer.
        on_audit: as in `decode`.

    Returns:
        One answer per prompt, in order.

    Raises:
        ConfigError: something the mode needs is missing.
        DataError: no prompt.
        VocabularyMismatch: `exact` sampling by TLI with too little shared.
        ModelError: see `decode`.
    """
    if len(prompts) == 0:
        raise DataError("there is no prompt to continue; give at least one.")
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; give at least 1.")
    writer = draft if settings.mode == "local" else target
    if writer is None:
        wanted = "draft" if settings.mode == "local" else "target"
        raise ConfigError(f"mode {settings.mode} needs a {wanted} model.")
    crossing = _crossing(draft, target, settings, bridge)
    if crossing == "tli" and settings.mode == "exact" and settings.uplink != "greedy":
        # Before the first word is shown.
        batches = [prompts[start : start + batch_size] for start in range(0, len(prompts), batch_size)]
        masses = [_Batch(draft, target, writer, batch, crossing, chat_template).shared() for batch in batches]
        refuse_too_little_shared(float(torch.cat(masses).mean()))
    answers: list[Generation] = []
    for start in range(0, len(prompts), batch_size):
        chosen = prompts[start : start + batch_size]
        streams = [TextStream() for _ in chosen]
        batch = _Batch(draft, target, writer, chosen, crossing, chat_template)

        def show(
            row: int,
            tokens: list[int],
            sources: Sequence[Source],
            start: int = start,
            streams: list[TextStream] = streams,
        ) -> bool | None:
            ends = None if on_tokens is None else on_tokens(start + row, tokens, sources)
            chunk = streams[row].add(spell(writer.tokenizer.card, tokens))
            if on_text is not None and chunk:
                on_text(start + row, chunk)
            return ends

        def audited(row: int, u: float, error: float, start: int = start) -> None:
            if on_audit is not None:
                on_audit(start + row, u, error)

        chosen_settings = replace(settings, seed=settings.seed + start)
        decoded = batch.decode(
            chosen_settings,
            uncertainty,
            beta_upper,
            show,
            None if peers is None else peers.open(chosen),
            audited,
        )
        for i, (prompt, stream, answer) in enumerate(zip(chosen, streams, decoded, strict=True)):
            rest = stream.add(b"", final=True)
            if on_text is not None and rest:
                on_text(start + i, rest)
            answers.append(Generation(prompt, stream.text, answer.ids, crossing, answer.record))
    return answers


def _crossing(draft: Party | None, target: Party | None, settings: DecodeSettings, bridge: Bridge) -> str:
    """How drafts cross: "same", "slem" or "tli"."""
    if bridge not in ("auto", "slem", "tli"):
        raise ConfigError(f"bridge {bridge!r} is unknown; use auto, slem or tli.")
    if draft is None or target is None or settings.mode in ("local", "cloud"):
        return "same"
    if draft.tokenizer.card.hash == target.tokenizer.card.hash:
        return "same"
    chosen = ("slem" if settings.mode == "exact" else "tli") if bridge == "auto" else bridge
    if chosen == "slem" and settings.mode != "exact":
        raise ConfigError(
            f"bridge slem cannot go with mode {settings.mode}: the error of a kept token is not defined in another "
            "vocabulary. Use bridge tli."
        )
    return chosen


@dataclass(frozen=True)
class _Batch:
    """Prompts that are answered together."""

    draft: Party | None
    target: Party | None
    writer: Party
    prompts: Sequence[str]
    crossing: str
    chat_template: bool

    def decode(
        self,
        settings: DecodeSettings,
        uncertainty: Uncertainty | None,
        beta_upper: Callable[[float], float] | None,
        show: OnCommit,
        peers: Peers | None,
        audited: Callable[[int, float, float], None],
    ) -> list[Decoded]:
        """Every prompt's answer."""
        card = self.writer.tokenizer.card
        written = self._ids(self.writer)
        crosses = self.crossing != "same"
        return decode(
            self._drafter(settings, uncertainty, [len(ids) for ids in written]),
            None if self.target is None else self.target.cached_rows(len(self.prompts)),
            written,
            settings,
            eos_id=card.roles["eos"],
            uncertainty=uncertainty,
            beta_upper=beta_upper,
            peers=peers,
            on_commit=show,
            on_audit=audited,
            prompt_bytes=[len(prompt.encode()) for prompt in self.prompts] if crosses else None,
            spell=(lambda token: spell(card, [token])) if crosses else None,
        )

    def _drafter(
        self, settings: DecodeSettings, uncertainty: Uncertainty | None, target_lengths: Sequence[int]
    ) -> NextTokenModel | Drafter | None:
        if self.draft is None or settings.mode == "cloud":
            return None
        model = _reader(self.draft, len(self.prompts))
        if self.crossing == "same" or self.target is None:
            return model
        prompts, speller = self._ids(self.draft), self.target.tokenizer
        if self.crossing == "tli":
            return SharedVocabularyModel(model, self.draft.tokenizer, speller, prompts, target_lengths)
        if uncertainty is None:
            raise ConfigError("mode exact needs an uncertainty: a function of the SLM's logits.")
        return TextDrafter(model, self.draft.tokenizer, speller, prompts, settings, uncertainty)

    def shared(self) -> Tensor:
        """How much of the SLM's law lies on shared tokens, at every place of every prompt; (N,) float64."""
        if self.draft is None or self.target is None:
            return torch.ones(1, dtype=torch.float64)
        own, _ = shared_tokens(self.draft.tokenizer.card, self.target.tokenizer.card)
        prompts = self._ids(self.draft)
        model = _reader(self.draft, len(prompts))
        answers = model.logits(range(len(prompts)), prompts, [len(prompt) for prompt in prompts])
        return torch.cat([shared_mass(answer.cpu(), own) for answer in answers])

    def _ids(self, party: Party) -> list[list[int]]:
        encode = party.tokenizer.encode_prompt
        return [[int(i) for i in encode(prompt, chat_template=self.chat_template)] for prompt in self.prompts]


def _reader(party: Party, n_rows: int) -> NextTokenModel:
    """The SLM reading so many texts; it must be here, since its laws are looked at."""
    model = party.cached_rows(n_rows)
    if not hasattr(model, "logits"):
        raise ConfigError(
            f"{party.name} cannot draft: its logits stay elsewhere. Draft with a model of this process."
        )
    return cast(NextTokenModel, model)
