"""Toy tokenizers that cut the same text differently: SLEM and TLI leave the LLM's law as it is.

target   a | b | ab | end            "aba" is  ab a
client   b | a | ba | end            "aba" is  a ba
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedtandem.alignment.card import VocabularyCard
from fedtandem.errors import ConfigError, DataError, VocabularyMismatch
from fedtandem.inference.bridge import (
    Reading,
    SharedVocabularyModel,
    TextDrafter,
    shared_mass,
    shared_tokens,
    spell,
    whole_text,
)
from fedtandem.inference.decode import DecodeSettings, decode
from fedtandem.inference.generate import TextStream, generate

LENGTH = 3
PAIRS = {
    "words": ([b"a", b"b", b"ab"], [b"b", b"a", b"ba"]),
    # "é" is C3 A9: the target writes its halves, the client the whole letter.
    "halves": ([b"a", b"\xc3", b"\xa9"], [b"a", "é".encode(), b"\xc3"]),
    "nothing but the end": ([b"a", b"b"], [b"c", b"d"]),
}


class Toy:
    """A tokenizer of a few pieces and an end; reads greedily, the longest piece first."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = list(pieces)
        self.eos = len(pieces)
        self.card = VocabularyCard(
            tokens=tuple(map(repr, [*pieces, "end"])),
            token_bytes=(*pieces, None),
            roles={"eos": self.eos},
            special=frozenset({self.eos}),
            marker="",
        )

    def encode_prompt(self, prompt: str, *, chat_template: bool = False) -> np.ndarray:
        return np.concatenate([[self.eos], self.continue_ids(prompt)]).astype(np.int32)

    def continue_ids(self, text: str) -> np.ndarray:
        rest, ids = text.encode(), []
        while rest:
            fitting = [i for i, piece in enumerate(self.pieces) if rest.startswith(piece)]
            if not fitting:  # a letter this tokenizer cannot write
                rest = rest[1:]
                continue
            ids.append(max(fitting, key=lambda i: len(self.pieces[i])))
            rest = rest[len(self.pieces[ids[-1]]) :]
        return np.array(ids, np.int32)


class Hashed:
    """A model whose law is drawn from a seed and the whole text before."""

    def __init__(self, vocab_size: int, seed: int, favours: Sequence[int] = ()) -> None:
        self.vocab_size, self.seed, self.favours = vocab_size, seed, list(favours)
        self.limit: int | None = None

    def law(self, ids: Sequence[int]) -> Tensor:
        return self._logits(ids).softmax(dim=-1)

    def _logits(self, ids: Sequence[int]) -> Tensor:
        logits = 1.5 * np.random.default_rng([self.seed, *map(int, ids)]).standard_normal(self.vocab_size)
        logits[self.favours] += 8
        return torch.from_numpy(logits)

    def logits(self, rows: Sequence[int], ids: Sequence[Sequence[int]], last: Sequence[int]) -> list[Tensor]:
        return [
            torch.stack([self._logits(text[: len(text) - i]) for i in reversed(range(n))])
            for text, n in zip(ids, last, strict=True)
        ]

    def forget(self, row: int) -> None:
        pass


class Party:
    """A toy tokenizer with a toy model, as `generate` takes them."""

    def __init__(self, pieces: Sequence[bytes], seed: int, favours: Sequence[int] = ()) -> None:
        self.name = "toy"
        self.tokenizer = Toy(pieces)
        self.model = Hashed(len(pieces) + 1, seed, favours)

    def cached_rows(self, n_rows: int) -> Hashed:
        return self.model


class Script:
    """Follows a script, then takes the first possibility and notes the others."""

    def __init__(self, script: list[int]) -> None:
        self.script, self.taken, self.others, self.weight = script, [], [], 1.0

    def _take(self, weights: dict[int, float]) -> int:
        possible = [option for option in weights if weights[option] > 0]
        step = len(self.taken)
        option = self.script[step] if step < len(self.script) else possible[0]
        if step >= len(self.script):
            self.others += [[*self.taken, other] for other in possible[1:]]
        self.taken.append(option)
        self.weight *= weights[option]
        return option

    def choose(self, row: int, law: Tensor) -> int:
        return self._take(dict(enumerate(law.tolist())))

    def happens(self, row: int, probability: float) -> bool:
        return bool(self._take({1: probability, 0: 1 - probability}))


def enumerated(
    client: Party, target: Party, bridge: str, chosen: DecodeSettings
) -> dict[tuple[int, ...], float]:
    """The law of the answers through a bridge."""
    prompt, own = target.tokenizer.encode_prompt("a"), client.tokenizer.encode_prompt("a")
    law: Counter[tuple[int, ...]] = Counter()
    scripts: list[list[int]] = [[]]
    while scripts:
        if bridge == "slem":
            drafter = TextDrafter(client.model, client.tokenizer, target.tokenizer, [own], chosen, doubt)
        else:
            drafter = SharedVocabularyModel(
                client.model, client.tokenizer, target.tokenizer, [own], [len(prompt)]
            )
        path = Script(scripts.pop())
        (answer,) = decode(
            drafter,
            target.model,
            [prompt],
            chosen,
            eos_id=target.tokenizer.eos,
            uncertainty=doubt,
            chance=path,
        )
        law[tuple(answer.ids)] += path.weight
        scripts += path.others
    return dict(law)


def own_law(party: Party, answer: tuple[int, ...] = (), weight: float = 1.0) -> dict[tuple[int, ...], float]:
    if len(answer) == LENGTH or party.tokenizer.eos in answer:
        return {answer: weight}
    law: dict[tuple[int, ...], float] = {}
    for token, p in enumerate(party.model.law([*party.tokenizer.encode_prompt("a"), *answer]).tolist()):
        law |= own_law(party, (*answer, token), weight * p)
    return law


def doubt(logits: Tensor) -> Tensor:
    return 1 - logits.softmax(dim=-1).amax(dim=-1)


@settings(max_examples=12)
@given(
    st.integers(0, 10**6),
    st.sampled_from(sorted(PAIRS)),
    st.sampled_from(["slem", "tli"]),
    st.integers(1, 3),
    st.sampled_from([-1.0, 0.5, 2.0]),
)
def test_drafts_across_tokenizers_leave_the_llms_law(
    seed: int, pair: str, bridge: str, block: int, tau: float
) -> None:
    target, client = (Party(pieces, seed + i) for i, pieces in enumerate(PAIRS[pair]))
    chosen = DecodeSettings(mode="exact", uplink="scalar", block=block, tau=tau, max_new_tokens=LENGTH)
    found, wanted = enumerated(client, target, bridge, chosen), own_law(target)
    assert sum(found.values()) == pytest.approx(1)
    assert sum(abs(found.get(key, 0) - wanted.get(key, 0)) for key in {*found, *wanted}) < 2e-12


@given(
    st.integers(0, 10**6),
    st.sampled_from(["words", "halves"]),
    st.sampled_from(["slem", "tli"]),
    st.sampled_from(["greedy", "shared_noise"]),
    st.integers(1, 4),
)
def test_greedy_and_shared_noise_equal_the_llm_alone_across_tokenizers(
    seed: int, pair: str, bridge: str, uplink: str, block: int
) -> None:
    target, client = (Party(pieces, seed + i) for i, pieces in enumerate(PAIRS[pair]))
    # Where little is shared, exact sampling by TLI is refused; the client favours what is shared here.
    client.model.favours = [0]
    values = {"uplink": uplink, "seed": seed, "max_new_tokens": 8}
    alone = generate(None, target, ["a", "ab"], DecodeSettings(mode="cloud", **values))
    shown = ["", ""]

    def show(i: int, text: str) -> None:
        shown[i] += text

    both = generate(
        client, target, ["a", "ab"], DecodeSettings(mode="exact", block=block, **values),
        uncertainty=doubt, bridge=bridge, on_text=show,
    )  # fmt: skip
    assert [(one.ids, one.text) for one in both] == [(one.ids, one.text) for one in alone]
    assert shown == [one.text for one in both]
    assert {one.bridge for one in both} == {bridge}


def test_text_drafts_are_cut_again_by_the_target() -> None:
    """The client drafts "a", "ba", "ba": the target reads "ab", "ab", "a" and would have written just that."""

    class Says(Hashed):
        def __init__(self, vocab_size: int, *wanted: int) -> None:
            super().__init__(vocab_size, 0)
            self.wanted = wanted

        def _logits(self, ids: Sequence[int]) -> Tensor:
            return 50 * torch.eye(self.vocab_size)[self.wanted[min(len(ids), len(self.wanted)) - 1]]

    target, client = (Party(pieces, 0) for pieces in PAIRS["words"])
    client.model, target.model = Says(4, 1, 2, 2, 3), Says(4, 2, 2, 0, 3)
    chosen = DecodeSettings(uplink="greedy", tau=1.0, max_new_tokens=8)
    (answer,) = generate(client, target, [""], chosen, uncertainty=doubt)
    assert (answer.text, answer.ids, answer.bridge) == ("ababa", [2, 2, 0, 3], "slem")
    assert (answer.record.llm_passes, answer.record.slm_passes, answer.record.accepted) == (1, 4, 4)
    # Up: the empty prompt, then a flag and five letters. Down: four bytes that count letters.
    assert (answer.record.uplink_bytes, answer.record.downlink_bytes) == (6, 4)


@given(st.lists(st.text("abé", max_size=30), min_size=1, max_size=5), st.sampled_from([None, 7]))
def test_an_answer_that_is_read_again_from_its_end_is_the_same_text(
    texts: list[str], limit: int | None
) -> None:
    """The texts need not grow from each other: drafts are taken back."""
    toy = Toy([b"a", b"b", b"ab", "é".encode(), b"\xc3", b"\xa9"])
    reading = Reading(toy, [[toy.eos]], limit)
    for text in texts:
        ids = reading.ids(0, text, then=2)
        spelled = spell(toy.card, ids)
        if limit is None:
            assert (ids[0], spelled.decode()) == (toy.eos, text)
        else:
            assert len(ids) + 2 <= limit
            assert text.encode().endswith(spelled)


def test_only_the_end_of_a_long_answer_is_read_again() -> None:
    class Watched(Toy):
        def continue_ids(self, text: str) -> np.ndarray:
            lengths.append(len(text))
            return super().continue_ids(text)

    lengths: list[int] = []
    reading = Reading(Watched([b"a", b"b"]), [[2]], None)
    for n in (100, 101, 107, 50):
        assert reading.ids(0, "a" * n) == [2] + [0] * n
    assert lengths == [100, 11, 16, 3]


@given(st.lists(st.binary(max_size=5), max_size=6))
def test_streamed_text_is_whole_characters_and_makes_up_the_answer(parts: list[bytes]) -> None:
    stream = TextStream()
    chunks = [stream.add(part) for part in parts]
    chunks.append(stream.add(b"", final=True))
    assert "".join(chunks) == stream.text == b"".join(parts).decode("utf-8", "replace")


@given(st.text(max_size=6), st.integers(0, 3))
def test_half_a_character_waits_for_its_other_half(text: str, cut: int) -> None:
    spelled = text.encode("utf-8", "ignore")
    spelled = spelled[: max(0, len(spelled) - cut)]
    read, held = whole_text(spelled)
    assert read.encode() + held == spelled
    assert "�" not in read or "�" in text


def test_a_streamed_letter_is_shown_once_it_is_whole() -> None:
    class Letter(Hashed):
        def _logits(self, ids: Sequence[int]) -> Tensor:
            return 50 * torch.eye(4)[[1, 2, 3][len(ids) - 1]]

    target, _ = (Party(pieces, 0) for pieces in PAIRS["halves"])
    target.model = Letter(4, 0)
    shown: list[str] = []
    chosen = DecodeSettings(mode="cloud", uplink="greedy")
    (answer,) = generate(None, target, [""], chosen, on_text=lambda i, text: shown.append(text))
    assert (shown, answer.text, answer.record.tokens) == (["é"], "é", 3)


def test_half_a_letter_at_the_end_is_shown_as_such() -> None:
    target = Party(PAIRS["halves"][0], 0, favours=[1])  # writes C3 again and again
    shown: list[str] = []
    chosen = DecodeSettings(mode="cloud", uplink="greedy", max_new_tokens=3)
    (answer,) = generate(None, target, [""], chosen, on_text=lambda i, text: shown.append(text))
    assert answer.ids == [1, 1, 1]
    assert "".join(shown) == answer.text == "\ufffd" * 3


def test_shared_tokens_are_those_of_equal_bytes_and_the_end() -> None:
    target, client = (Toy(pieces) for pieces in PAIRS["words"])
    own, theirs = shared_tokens(client.card, target.card)
    assert list(zip(own.tolist(), theirs.tolist(), strict=True)) == [(1, 0), (0, 1), (3, 3)]
    mass = shared_mass(torch.tensor([[0.2, 0.3, 0.4, 0.1]]).log(), own)
    assert float(mass) == pytest.approx(0.6)


def test_a_bridged_law_is_the_slms_on_shared_tokens_and_nothing_elsewhere() -> None:
    target, client = (Party(pieces, i) for i, pieces in enumerate(PAIRS["words"]))
    bridged = SharedVocabularyModel(client.model, client.tokenizer, target.tokenizer, [[3]], [1])
    # The target has written "ab"; the client reads "a", "b".
    (logits,) = bridged.logits([0], [[3, 2]], [1])
    q = client.model.law([3, 1, 0])
    wanted = torch.stack([q[1], q[0], torch.tensor(0.0), q[3]])
    torch.testing.assert_close(logits[0].softmax(dim=-1), (wanted / wanted.sum()).double())


def test_exact_sampling_with_too_little_shared_is_refused_before_anything_is_shown() -> None:
    target, client = Party([b"a", b"b"], 0), Party([b"xx", b"yy", b"a"], 1, favours=[0])
    shown: list[str] = []

    def answer(**values: object) -> object:
        return generate(
            client, target, ["a"] * 3, DecodeSettings(max_new_tokens=4, **values), uncertainty=doubt, bridge="tli",
            batch_size=2, on_text=lambda i, text: shown.append(text),
        )  # fmt: skip

    for uplink in ("shared_noise", "scalar", "sparse"):
        with pytest.raises(VocabularyMismatch, match=r"only 0% .* at least 50%.*slem"):
            answer(uplink=uplink)
    assert shown == []
    assert answer(uplink="greedy")
    assert answer(mode="fedhlm", uplink="scalar")
    client.model.favours = [2]
    assert answer(uplink="scalar")


def test_no_token_shared_at_all() -> None:
    target, client = Party([b"a"], 0), Party([b"b"], 1)
    object.__setattr__(client.tokenizer.card, "roles", {})
    with pytest.raises(VocabularyMismatch, match="share no token"):
        SharedVocabularyModel(client.model, client.tokenizer, target.tokenizer, [[0]], [1])


def test_what_generate_cannot_do_is_refused() -> None:
    target, client = (Party(pieces, i) for i, pieces in enumerate(PAIRS["words"]))
    with pytest.raises(DataError, match="no prompt"):
        generate(client, target, [], DecodeSettings(), uncertainty=doubt)
    with pytest.raises(ConfigError, match="needs a target"):
        generate(client, None, ["a"], DecodeSettings(), uncertainty=doubt)
    with pytest.raises(ConfigError, match="needs a draft"):
        generate(None, target, ["a"], DecodeSettings(mode="local"))
    with pytest.raises(ConfigError, match="bridge 'rope'"):
        generate(client, target, ["a"], DecodeSettings(), uncertainty=doubt, bridge="rope")
    with pytest.raises(ConfigError, match="slem cannot go with mode fedhlm"):
        generate(client, target, ["a"], DecodeSettings(mode="fedhlm"), uncertainty=doubt, bridge="slem")
    with pytest.raises(ConfigError, match="batch_size is 0"):
        generate(client, target, ["a"], DecodeSettings(), uncertainty=doubt, batch_size=0)
    with pytest.raises(ConfigError, match="uncertainty"):
        generate(client, target, ["a"], DecodeSettings())
