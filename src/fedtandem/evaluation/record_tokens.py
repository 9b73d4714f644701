"""Recording generation: the SLM answers, the LLM says of every token what it would have written there."""

import hashlib
import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedtandem.data.items import Item
from fedtandem.data.traces import TraceInfo
from fedtandem.errors import DataError, ModelError
from fedtandem.evaluation.recording import Recorded, laws_along, parties, top_law
from fedtandem.inference.bridge import SharedVocabularyModel
from fedtandem.inference.drafting import NextTokenModel
from fedtandem.inference.gates import token_gate
from fedtandem.models.fingerprint import fingerprint
from fedtandem.models.language_model import LanguageModel

LOOK_BACK = 32
"""Tokens that must be equal for a peer's token to be reused."""

DIFFERENT = (
    "the tokenizers differ: the SLM drafted in the LLM's tokens, and the same text cut otherwise counts as refused; "
    "no embeddings"
)


class TokenRecorder:
    """Token-level decisions of two causal models along the SLM's own answers.

    With another tokenizer the SLM drafts, in the LLM's ids, the tokens both vocabularies spell alike (TLI).

    Args:
        draft: the likeliest token, or one drawn from the SLM's law.
        max_new_tokens: of each answer.
        top_k: tokens of each law that are written down, besides the draft.
        seed: of drawn drafts; an item's draws depend on its id and on nothing else.
        embeds: write down the SLM's hidden state before each token; needs one tokenizer.
    """

    def __init__(
        self,
        slm: LanguageModel,
        llm: LanguageModel,
        *,
        draft: Literal["greedy", "sampled"] = "greedy",
        max_new_tokens: int = 64,
        top_k: int = 64,
        seed: int = 0,
        embeds: bool = False,
        name: str = "trace",
    ) -> None:
        self._slm, self._llm = slm, llm
        self._same = slm.tokenizer.card.hash == llm.tokenizer.card.hash
        self._draft, self._limit, self._k, self._seed = draft, max_new_tokens, top_k, seed
        self._embeds = embeds and self._same
        self.note = "" if self._same else DIFFERENT
        marks = [fingerprint(lm.name, lm.model, lm.tokenizer.card.hash) for lm in (slm, llm)]
        self.info = TraceInfo(
            slm=marks[0], llm=marks[1], vocabulary=llm.tokenizer.vocab_size, draft=draft,
            embedding=marks[0] if self._embeds else "", name=name,
        )  # fmt: skip

    def record(self, items: Sequence[Item]) -> Recorded:
        """Every token of the SLM's answers to a batch of prompts."""
        prompts = [[int(i) for i in self._llm.tokenizer.encode_prompt(item.text)] for item in items]
        model = self._drafter(items, prompts)
        written, laws, step_ms = self._write(model, items, prompts)
        started = time.perf_counter()
        judged = laws_along(self._llm.cached_rows(len(items)), prompts, written)
        llm_ms = 1000 * (time.perf_counter() - started) / sum(map(len, written))
        for item, law in zip(items, judged, strict=True):
            if not bool(law.amax(dim=-1).isfinite().all()):
                raise ModelError(f"item {item.id!r}: {self._llm.name} gave NaN logits; load it in float32.")
        q, p = torch.cat([torch.stack(rows) for rows in laws]), torch.cat(judged)
        draft = torch.tensor([token for row in written for token in row])
        slm_ids, slm_probs = top_law(q, self._k, draft)
        llm_ids, llm_probs = top_law(p, self._k, draft)
        per_token = [item for item, row in zip(items, written, strict=True) for _ in row]
        columns: dict[str, Any] = {
            **parties(per_token), "position": np.concatenate([np.arange(len(row)) for row in written]),
            "draft": draft.numpy(), "answer": p.argmax(dim=-1).numpy(), "slm_ids": slm_ids.numpy(),
            "slm_probs": slm_probs.numpy(), "llm_ids": llm_ids.numpy(), "llm_probs": llm_probs.numpy(),
            "context": [
                token_gate([*prompt, *row[:i]], LOOK_BACK).hex()
                for prompt, row in zip(prompts, written, strict=True)
                for i in range(len(row))
            ],
            "slm_ms": np.concatenate([np.array(times) for times in step_ms]),
            "llm_ms": np.full(len(draft), llm_ms),
        }  # fmt: skip
        if self._embeds:
            columns["embedding"] = self._embedding(prompts, written).numpy()
        return Recorded(columns, {})

    def _drafter(self, items: Sequence[Item], prompts: Sequence[Sequence[int]]) -> NextTokenModel:
        model = self._slm.cached_rows(len(items))
        if self._same:
            return model
        own = [[int(i) for i in self._slm.tokenizer.encode_prompt(item.text)] for item in items]
        lengths = [len(prompt) for prompt in prompts]
        return SharedVocabularyModel(model, self._slm.tokenizer, self._llm.tokenizer, own, lengths)

    def _write(
        self, model: NextTokenModel, items: Sequence[Item], prompts: Sequence[Sequence[int]]
    ) -> tuple[list[list[int]], list[list[Tensor]], list[list[float]]]:
        """The SLM's answers, the raw logits (V,) and the milliseconds of each token."""
        eos_id, room = self._llm.tokenizer.eos_id, self._rooms(model, items, prompts)
        written: list[list[int]] = [[] for _ in items]
        laws: list[list[Tensor]] = [[] for _ in items]
        took: list[list[float]] = [[] for _ in items]
        draws = [self._generator(item) for item in items]
        going = list(range(len(items)))
        while going:
            started = time.perf_counter()
            found = model.logits(going, [[*prompts[i], *written[i]] for i in going], [1] * len(going))
            ms = 1000 * (time.perf_counter() - started) / len(going)
            for i, logits in zip(going, found, strict=True):
                law = logits[0].float().cpu()
                if not bool(law.amax().isfinite()):
                    raise ModelError(
                        f"item {items[i].id!r}: {self._slm.name} gave NaN logits; load it in float32."
                    )
                written[i].append(self._choose(law, draws[i]))
                laws[i].append(law)
                took[i].append(ms)
            going = [i for i in going if written[i][-1] != eos_id and len(written[i]) < room[i]]
        return written, laws, took

    def _rooms(
        self, model: NextTokenModel, items: Sequence[Item], prompts: Sequence[Sequence[int]]
    ) -> list[int]:
        """Tokens that may follow each prompt."""
        limits = [limit for limit in (model.limit, self._llm.cached_rows(1).limit) if limit is not None]
        rooms = []
        for item, prompt in zip(items, prompts, strict=True):
            room = min([self._limit, *(limit - len(prompt) for limit in limits)])
            if room < 1:
                raise DataError(
                    f"item {item.id!r} has {len(prompt)} tokens, which fills the models' context of {min(limits)}; "
                    "leave it out or shorten it."
                )
            rooms.append(room)
        return rooms

    def _generator(self, item: Item) -> torch.Generator:
        digest = hashlib.blake2b(f"{self._seed} {item.id}".encode(), digest_size=7).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big"))

    def _choose(self, law: Tensor, generator: torch.Generator) -> int:
        if self._draft == "greedy":
            return int(law.argmax())
        return int(torch.multinomial(law.double().softmax(dim=-1), 1, generator=generator))

    def _embedding(self, prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]]) -> Tensor:
        texts = [[*prompt, *row[:-1]] for prompt, row in zip(prompts, written, strict=True)]
        states = self._slm.hidden_states(texts)
        return torch.cat([state[-len(row) :] for state, row in zip(states, written, strict=True)])
