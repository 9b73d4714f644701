"""Whole answers of two toy models: their laws are enumerated, not sampled, through the one public function.

Every random decision of a generation goes through `Chance`. A chance that follows a script and writes down the
alternatives visits every path of a generation once; the weights of the paths are the law.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedtandem.errors import ConfigError, DataError, FedtandemError, ModelError
from fedtandem.inference import drafting
from fedtandem.inference.decode import Decoded, DecodeSettings, decode
from fedtandem.inference.peer_tokens import Known
from fedtandem.inference.row import Source
from fedtandem.inference.shared_noise import gumbel_noise

Law = dict[tuple[int, ...], float]
V, LENGTH, EOS = 3, 3, 2
PROMPT = [0, 1]
UPLINKS = ("scalar", "sparse")
few = settings(max_examples=25)


class Table:
    """A model of V tokens whose law after any answer so far is drawn once; some tokens are impossible."""

    limit: int | None = None

    def __init__(self, seed: int, zeros: bool = True, vocab_size: int = V) -> None:
        self.vocab_size = vocab_size
        self.calls = 0
        rng = np.random.default_rng(seed)
        self._logits: dict[tuple[int, ...], Tensor] = {}
        for length in range(LENGTH + 1):
            for answer in itertools.product(range(vocab_size), repeat=length):
                weights = rng.gamma(0.7, size=vocab_size) + 1e-3
                if zeros:
                    weights[rng.random(vocab_size) < 0.2] = 0
                    weights[rng.integers(vocab_size)] += 0.5
                self._logits[answer] = torch.from_numpy(weights).log()

    def law(self, answer: tuple[int, ...]) -> Tensor:
        return self._logits[answer].softmax(dim=-1)

    def logits(self, rows: Sequence[int], ids: Sequence[Sequence[int]], last: Sequence[int]) -> list[Tensor]:
        self.calls += 1
        answers = [tuple(text[len(PROMPT) :]) for text in ids]
        return [
            torch.stack([self._logits[answer[: len(answer) - i]] for i in reversed(range(n))])
            for answer, n in zip(answers, last, strict=True)
        ]

    def forget(self, row: int) -> None:
        pass


class Path:
    """A chance that follows a script, then takes the first possibility and notes the others."""

    def __init__(self, script: list[int]) -> None:
        self.script, self.taken = script, []
        self.others: list[list[int]] = []
        self.weight = 1.0

    def _take(self, weights: list[tuple[int, float]]) -> int:
        possible = [(option, weight) for option, weight in weights if weight > 0]
        step = len(self.taken)
        if step < len(self.script):
            option = self.script[step]
        else:
            option = possible[0][0]
            self.others += [[*self.taken, other] for other, _ in possible[1:]]
        self.weight *= dict(possible)[option]
        self.taken.append(option)
        return option

    def choose(self, row: int, law: Tensor) -> int:
        return self._take(list(enumerate(law.tolist())))

    def happens(self, row: int, probability: float) -> bool:
        return bool(self._take([(1, probability), (0, 1 - probability)]))


def every_path(run: Callable[[Path], Decoded]) -> list[tuple[float, Decoded]]:
    """(probability, outcome) of all paths."""
    scripts: list[list[int]] = [[]]
    found = []
    while scripts:
        path = Path(scripts.pop())
        found.append((run(path), path))
        scripts += path.others
    return [(path.weight, decoded) for decoded, path in found]


def sequence_law(paths: list[tuple[float, Decoded]]) -> Law:
    law: Counter[tuple[int, ...]] = Counter()
    for weight, decoded in paths:
        law[tuple(decoded.ids)] += weight
    return dict(law)


def own_law(model: Table, answer: tuple[int, ...] = (), weight: float = 1.0) -> Law:
    """The law of a model's own answers, multiplied out."""
    if len(answer) == LENGTH or (answer and answer[-1] == EOS):
        return {answer: weight}
    law: Law = {}
    for token, p in enumerate(model.law(answer).tolist()):
        if p > 0:
            law |= own_law(model, (*answer, token), weight * p)
    return law


def distance(a: Law, b: Law) -> float:
    """Total variation."""
    return sum(abs(a.get(key, 0) - b.get(key, 0)) for key in {*a, *b}) / 2


def doubt(logits: Tensor) -> Tensor:
    return 1 - logits.softmax(dim=-1).amax(dim=-1)


def paths(
    q: Table, p: Table, unsure: Callable[[Tensor], Tensor] = doubt, **values: object
) -> list[tuple[float, Decoded]]:
    chosen = DecodeSettings(max_new_tokens=LENGTH, **{"uplink": "scalar", **values})
    bound = (lambda u: min(1.0, u)) if chosen.mode == "bounded" else None
    return every_path(
        lambda chance: decode(
            q, p, [PROMPT], chosen, eos_id=EOS, uncertainty=unsure, beta_upper=bound, chance=chance
        )[0]
    )


# -- laws ---------------------------------------------------------------------------------------------------------


@few
@given(
    st.integers(0, 10**6),
    st.sampled_from(UPLINKS),
    st.integers(1, 3),
    st.sampled_from([-1.0, 0.3, 0.5, 2.0]),
    st.integers(1, V),
)
def test_exact_has_the_llms_law_whatever_block_tau_uplink_and_truncation(
    seed: int, uplink: str, block: int, tau: float, top_k: int
) -> None:
    q, p = Table(seed), Table(seed + 1)
    found = paths(q, p, mode="exact", uplink=uplink, block=block, tau=tau, top_k=top_k)
    assert distance(sequence_law(found), own_law(p)) < 1e-12


@few
@given(st.integers(0, 10**6), st.sampled_from(UPLINKS), st.integers(1, 3))
def test_fedhlm_is_the_llm_at_tau_minus_one_and_the_slm_at_tau_two(
    seed: int, uplink: str, block: int
) -> None:
    q, p = Table(seed), Table(seed + 1)
    all_sent = paths(q, p, mode="fedhlm", uplink=uplink, block=block, tau=-1.0)
    assert distance(sequence_law(all_sent), own_law(p)) < 1e-12
    none_sent = paths(q, p, mode="fedhlm", uplink=uplink, block=block, tau=2.0)
    assert distance(sequence_law(none_sent), own_law(q)) < 1e-12
    assert all(decoded.record.llm_passes == 0 for _, decoded in none_sent)


@few
@given(st.integers(0, 10**6))
def test_local_and_cloud_are_the_two_models_alone(seed: int) -> None:
    q, p = Table(seed), Table(seed + 1)
    assert distance(sequence_law(paths(q, p, mode="local")), own_law(q)) < 1e-12
    assert distance(sequence_law(paths(q, p, mode="cloud")), own_law(p)) < 1e-12


def true_error(q: Table, p: Table) -> Callable[[Tensor], Tensor]:
    """An oracle in place of an uncertainty: TV(q, p) where the SLM has just these logits."""
    errors = {
        tuple(logits.tolist()): float((q.law(answer) - p.law(answer)).clamp_min(0).sum())
        for answer, logits in q._logits.items()
    }
    return lambda logits: torch.tensor([errors[tuple(row)] for row in logits.tolist()], dtype=torch.float64)


@few
@given(
    st.integers(0, 10**6), st.sampled_from([0.05, 0.2, 0.5, 1.0]), st.integers(1, 3), st.sampled_from(UPLINKS)
)
def test_bounded_with_true_bounds_never_exceeds_eps(seed: int, eps: float, block: int, uplink: str) -> None:
    q, p = Table(seed, zeros=False), Table(seed + 1, zeros=False)
    found = paths(
        q, p, true_error(q, p), mode="bounded", eps=eps, tau=1.0, block=block, uplink=uplink, audit="all"
    )
    assert distance(sequence_law(found), own_law(p)) <= eps + 1e-12
    for _, decoded in found:
        assert decoded.record.charged is not None
        assert decoded.record.charged <= eps
        # The bounds were the truth, so the audit finds just what was charged.
        assert decoded.record.audited == decoded.record.kept
        assert decoded.record.audited_error == pytest.approx(decoded.record.charged, abs=1e-5)


def test_bounded_spends_its_budget_and_then_verifies() -> None:
    q, p = Table(3, zeros=False), Table(4, zeros=False)
    kept = [
        sum(weight * decoded.record.kept for weight, decoded in
            paths(q, p, true_error(q, p), mode="bounded", eps=eps, tau=1.0))
        for eps in (1e-6, 0.5, 1.0)
    ]  # fmt: skip
    assert kept[0] == 0 < kept[1] < kept[2]


@few
@given(st.integers(0, 10**6), st.floats(0, 1), st.integers(1, 3))
def test_the_expected_audited_error_bounds_the_error_of_a_sequence(seed: int, tau: float, block: int) -> None:
    q, p = Table(seed), Table(seed + 1)
    found = paths(q, p, mode="fedhlm", tau=tau, block=block, audit="all")
    expected = sum(weight * decoded.record.audited_error for weight, decoded in found)
    assert distance(sequence_law(found), own_law(p)) <= expected + 1e-5


def test_the_error_of_one_kept_token_is_the_total_variation() -> None:
    q, p = Table(5), Table(6)
    found = every_path(
        lambda chance: decode(
            q, p, [PROMPT], DecodeSettings(mode="fedhlm", tau=1.0, uplink="scalar", max_new_tokens=1, audit="all"),
            eos_id=EOS, uncertainty=doubt, chance=chance,
        )[0]
    )  # fmt: skip
    error = float((q.law(()) - p.law(())).clamp_min(0).sum())
    assert {round(decoded.record.audited_error, 6) for _, decoded in found} == {round(error, 6)}
    assert distance(sequence_law(found), {(v,): float(p.law(())[v]) for v in range(V)}) == pytest.approx(
        error
    )


def test_an_audit_in_passing_keeps_few_laws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafting, "AUDIT_VALUES", 2 * V)

    q, p = Table(7, zeros=False), Table(8, zeros=False)
    unsure = {tuple(q._logits[answer].tolist()) for answer in q._logits if len(answer) == 2}

    def late(logits: Tensor) -> Tensor:
        return torch.tensor([float(tuple(row) in unsure) for row in logits.tolist()])

    def audited(audit: str) -> int:
        chosen = DecodeSettings(mode="fedhlm", tau=0.5, uplink="greedy", max_new_tokens=LENGTH, audit=audit)
        (answer,) = decode(q, p, [PROMPT], chosen, eos_id=-1, uncertainty=late)
        assert (answer.record.kept, answer.record.llm_passes) == (2, 1)
        return answer.record.audited

    assert [audited("passing"), audited("all"), audited("none")] == [2, 2, 0]
    monkeypatch.setattr(drafting, "AUDIT_VALUES", V)
    assert [audited("passing"), audited("all")] == [1, 2]


class Fixed:
    """Peers that go on with the same tokens, whatever stands."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.learnt: list[tuple[list[int], list[bool]]] = []

    def known(self, row: int, written: Sequence[int]) -> Known | None:
        return Known(self.tokens, [True] * len(self.tokens)) if self.tokens else None

    def learn(self, row: int, written: Sequence[int], resolved: Sequence[bool]) -> None:
        self.learnt.append((list(written), list(resolved)))


@few
@given(st.integers(0, 10**6), st.lists(st.integers(0, V - 1), max_size=3), st.integers(1, 3))
def test_a_peers_proposal_changes_no_law(seed: int, proposal: list[int], block: int) -> None:
    q, p = Table(seed), Table(seed + 1)
    chosen = DecodeSettings(mode="exact", uplink="scalar", max_new_tokens=LENGTH, block=block, tau=0.5)
    found = every_path(
        lambda chance: decode(
            q,
            p,
            [PROMPT],
            chosen,
            eos_id=EOS,
            uncertainty=doubt,
            chance=chance,
            peers=Fixed(proposal),
        )[0]
    )
    assert distance(sequence_law(found), own_law(p)) < 1e-12
    if proposal:  # only the last token, which is never worth a draft, and empty guesses are left to others
        assert all(decoded.record.slm_passes == 0 for _, decoded in found)


def test_peers_learn_what_the_llm_resolved_and_nothing_else() -> None:
    peers = Fixed([1])
    chosen = DecodeSettings(mode="fedhlm", uplink="greedy", peer="answer", max_new_tokens=LENGTH, tau=0.0)
    (answer,) = decode(Table(1), Table(2), [PROMPT], chosen, eos_id=-1, uncertainty=doubt, peers=peers)
    assert answer.ids == [1] * LENGTH
    assert answer.record.peer == LENGTH
    assert answer.record.llm_passes == 0
    assert peers.learnt == [([1] * LENGTH, [False] * LENGTH)]


@pytest.mark.parametrize(("mode", "peer"), [("exact", "answer"), ("fedhlm", "draft"), ("bounded", "draft")])
def test_a_use_of_peers_that_breaks_the_modes_promise_is_refused(mode: Any, peer: Any) -> None:
    chosen = DecodeSettings(mode=mode, peer=peer, eps=0.1 if mode == "bounded" else None)
    with pytest.raises(ConfigError, match=f"peer {peer} goes with mode"):
        decode(
            Table(1),
            Table(2),
            [PROMPT],
            chosen,
            eos_id=EOS,
            uncertainty=doubt,
            beta_upper=lambda u: u,
            peers=Fixed([]),
        )


# -- shared noise and greedy --------------------------------------------------------------------------------------


@given(
    st.integers(0, 10**6),
    st.integers(0, 2**40),
    st.sampled_from(["shared_noise", "greedy"]),
    st.integers(1, 4),
    st.floats(-1, 2),
)
def test_shared_noise_and_greedy_give_the_llms_own_answer(
    seed: int, noise_seed: int, uplink: str, block: int, tau: float
) -> None:
    p = Table(seed)
    values = {"uplink": uplink, "seed": noise_seed, "max_new_tokens": LENGTH}
    prompts = [PROMPT] * 3
    alone = decode(None, p, prompts, DecodeSettings(mode="cloud", **values), eos_id=EOS)
    for drafter in (Table(seed + 1), Table(seed)):
        both = decode(
            drafter, p, prompts, DecodeSettings(mode="exact", block=block, tau=tau, **values),
            eos_id=EOS, uncertainty=doubt,
        )  # fmt: skip
        assert [one.ids for one in both] == [one.ids for one in alone]
    assert sum(one.record.corrected for one in both) == 0  # the LLM drafting for itself is never refused


def test_noise_is_a_gumbel_sample_of_the_law_and_a_prefix_of_a_larger_vocabulary() -> None:
    noise = torch.stack([gumbel_noise(7, place, 4) for place in range(20_000)])
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.02)
    p = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    counts = (p.log() + noise).argmax(dim=-1).bincount(minlength=4)
    expected = 20_000 * p
    assert float(((counts - expected) ** 2 / expected).sum()) < 16.3  # chi-square, 3 degrees, p = 0.001
    assert torch.equal(gumbel_noise(7, 3, 9)[:4], noise[3])
    assert not torch.equal(gumbel_noise(8, 3, 4), noise[3])
    assert bool(gumbel_noise(-5, 0, 100_000).isfinite().all())


@given(st.integers(0, 10**6), st.sampled_from(["shared_noise", "scalar", "sparse", "greedy"]))
def test_a_prompt_of_a_batch_is_answered_as_it_would_be_alone(seed: int, uplink: str) -> None:
    q, p = Table(seed), Table(seed + 1)
    values = {"mode": "fedhlm", "uplink": uplink, "tau": 0.4, "block": 2, "max_new_tokens": LENGTH}
    together = decode(q, p, [PROMPT] * 4, DecodeSettings(seed=9, **values), eos_id=EOS, uncertainty=doubt)
    for i, answer in enumerate(together):
        (alone,) = decode(q, p, [PROMPT], DecodeSettings(seed=9 + i, **values), eos_id=EOS, uncertainty=doubt)
        assert alone == answer


# -- what is counted and shown ------------------------------------------------------------------------------------


@given(
    st.integers(0, 10**6),
    st.sampled_from(["shared_noise", "scalar", "sparse", "greedy"]),
    st.sampled_from(["exact", "fedhlm", "bounded", "cloud", "local"]),
    st.integers(1, 4),
    st.floats(-1, 2),
)
def test_counts_add_up_and_chunks_make_up_the_answer(
    seed: int, uplink: str, mode: str, block: int, tau: float
) -> None:
    q, p = Table(seed), Table(seed + 1)
    shown: list[list[int]] = [[], []]
    passes_before_first: list[int] = []
    sources: list[Source] = []

    def show(row: int, tokens: list[int], of: Sequence[Source]) -> None:
        passes_before_first.append(p.calls)
        shown[row] += tokens
        sources.extend(of)

    answers = decode(
        q, p, [PROMPT] * 2,
        DecodeSettings(mode=mode, uplink=uplink, block=block, tau=tau, eps=0.5, max_new_tokens=LENGTH, top_k=2),
        eos_id=EOS, uncertainty=doubt, beta_upper=lambda u: min(1.0, u), on_commit=show,
    )  # fmt: skip
    assert shown == [answer.ids for answer in answers]
    counted = Counter(source.tier for source in sources)
    for tier, name in (
        ("kept", "kept"),
        ("accepted", "accepted"),
        ("corrected", "corrected"),
        ("llm", "own"),
    ):
        assert counted[tier] == sum(getattr(answer.record, name) for answer in answers)
    kept = [source.u for source in sources if source.tier == "kept"]
    assert mode == "local" or all(u is not None and u <= tau for u in kept)
    if mode == "exact":
        assert min(passes_before_first) >= 1  # nothing is shown before the LLM has read it
    for answer in answers:
        ids, record = answer.ids, answer.record
        assert len(ids) == LENGTH or ids[-1] == EOS
        assert EOS not in ids[:-1]
        assert record.tokens == len(ids) == record.kept + record.accepted + record.corrected + record.own
        assert record.corrected + record.own <= record.llm_passes
        assert record.accepted + record.corrected <= record.drafted
        if mode == "cloud":
            assert record.llm_passes == record.tokens
            assert (record.uplink_bytes, record.downlink_bytes) == (4 * len(PROMPT), 4 * len(ids))
        elif mode == "local":
            assert (record.slm_passes, record.uplink_bytes, record.downlink_bytes) == (len(ids), 0, 0)
        else:
            law = {"scalar": 6, "sparse": -(-2 * (2 + 8) // 8)}.get(uplink, 4)
            refused = -(-2 * (2 + 16) // 8) * record.corrected if uplink == "scalar" else 0
            # Kept tokens travel with the next block; those that do are just those whose error a pass has shown.
            text = 4 * len(PROMPT) * (record.llm_passes > 0) + 4 * record.audited
            assert record.uplink_bytes == text + 2 * record.llm_passes + law * record.drafted + refused
            assert record.round_trips == record.llm_passes + (record.corrected if uplink == "scalar" else 0)
            # One byte a pass for how many stand, four for each token that is the LLM's.
            assert record.downlink_bytes == record.llm_passes + 4 * (record.corrected + record.own)


def test_a_drafter_that_is_always_right_saves_all_it_can() -> None:
    class Counting:
        """Says 1, 2, 3, ... with certainty."""

        vocab_size, limit = 100, None

        def logits(
            self, rows: Sequence[int], ids: Sequence[Sequence[int]], last: Sequence[int]
        ) -> list[Tensor]:
            eye = torch.eye(100) * 50
            return [
                torch.stack([eye[token + 1] for token in text[-n:]])
                for text, n in zip(ids, last, strict=True)
            ]

        def forget(self, row: int) -> None:
            pass

    for block, passes in ((1, 10), (3, 5), (4, 4), (9, 2), (19, 1)):
        chosen = DecodeSettings(uplink="greedy", block=block, tau=1.0, max_new_tokens=20)
        (answer,) = decode(Counting(), Counting(), [[0]], chosen, eos_id=-1, uncertainty=doubt)
        assert answer.ids == list(range(1, 21))
        # Every pass writes block + 1 tokens.
        assert answer.record.llm_passes == passes == math.ceil(20 / (block + 1))
        assert answer.record.near_ties == 0


def test_a_refusal_by_rounding_alone_keeps_the_draft() -> None:
    class Sure:
        """One possible token."""

        vocab_size, limit = 2, None

        def logits(
            self, rows: Sequence[int], ids: Sequence[Sequence[int]], last: Sequence[int]
        ) -> list[Tensor]:
            return [torch.tensor([[-math.inf, 0.0]]).repeat(n, 1) for n in last]

        def forget(self, row: int) -> None:
            pass

    class Refusing:
        """As if p/q had come out a little below 1, and the draw just above it."""

        def choose(self, row: int, law: Tensor) -> int:
            assert bool(law.any())  # the empty residual is never drawn from
            return int(law.argmax())

        def happens(self, row: int, probability: float) -> bool:
            return False

    chosen = DecodeSettings(uplink="scalar", max_new_tokens=3)
    (answer,) = decode(Sure(), Sure(), [[0]], chosen, eos_id=-1, uncertainty=doubt, chance=Refusing())
    assert answer.ids == [1, 1, 1]
    assert answer.record.corrected == 0


def test_a_full_context_ends_an_answer() -> None:
    q, p = Table(1), Table(2)
    q.limit = len(PROMPT) + 1
    chosen = DecodeSettings(uplink="greedy", max_new_tokens=LENGTH)
    (answer,) = decode(q, p, [PROMPT], chosen, eos_id=-1, uncertainty=doubt)
    assert len(answer.ids) == 2  # the second one is written, but nothing has to read it
    (answer,) = decode(q, p, [PROMPT], DecodeSettings(mode="cloud", max_new_tokens=LENGTH), eos_id=-1)
    assert len(answer.ids) == LENGTH


def test_near_ties_are_counted_with_their_place() -> None:
    class Torn:
        vocab_size, limit = 2, None

        def logits(
            self, rows: Sequence[int], ids: Sequence[Sequence[int]], last: Sequence[int]
        ) -> list[Tensor]:
            return [torch.tensor([[3.0, 3.04 if len(text) == 2 else 3.06]]).repeat(n, 1)
                    for text, n in zip(ids, last, strict=True)]  # fmt: skip

        def forget(self, row: int) -> None:
            pass

    chosen = DecodeSettings(mode="cloud", uplink="greedy", max_new_tokens=4)
    (answer,) = decode(None, Torn(), [[0]], chosen, eos_id=-1)
    assert (answer.record.near_ties, answer.record.first_near_tie) == (1, 1)


# -- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"tau": 3.0}, "tau is 3.0"),
        ({"tau": math.nan}, "tau is nan"),
        ({"mode": "bounded"}, "eps is missing"),
        ({"mode": "bounded", "eps": 0.0}, "eps is 0.0"),
        ({"mode": "bounded", "eps": -0.1}, "eps is -0.1"),
        ({"mode": "fast"}, "mode 'fast'"),
        ({"uplink": "smoke"}, "uplink 'smoke'"),
        ({"block": 0}, "block is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"audit": "maybe"}, "audit 'maybe'"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        DecodeSettings(**values)


class Broken(Table):
    def logits(self, rows: Sequence[int], ids: Sequence[Sequence[int]], last: Sequence[int]) -> list[Tensor]:
        answers = super().logits(rows, ids, last)
        answers[-1][-1, 0] = math.nan
        return answers


def test_what_cannot_be_decoded_is_refused() -> None:
    q, p = Table(1), Table(2)
    exact, bounded = DecodeSettings(), DecodeSettings(mode="bounded", eps=0.1)

    def refused(kind: type[FedtandemError], says: str, *models: object, **values: object) -> None:
        given = {"settings": exact, "prompts": [PROMPT], "uncertainty": doubt, **values}
        chosen, prompts = given.pop("settings"), given.pop("prompts")
        with pytest.raises(kind, match=says):
            decode(*models, prompts, chosen, eos_id=EOS, **given)

    refused(DataError, "no prompt", q, p, prompts=[])
    refused(DataError, "prompt 1 has no tokens", q, p, prompts=[PROMPT, []])
    refused(ConfigError, "target", q, None)
    refused(ConfigError, "draft", None, p)
    refused(ConfigError, "uncertainty", q, p, uncertainty=None)
    refused(ConfigError, "one finite number per row", q, p, uncertainty=lambda logits: logits)
    refused(ConfigError, "beta_upper", q, p, settings=bounded)
    refused(ConfigError, "is 2.0", q, p, settings=DecodeSettings(mode="bounded", eps=0.1, tau=1.0),
            beta_upper=lambda u: 2.0)  # fmt: skip
    short = Table(2)
    short.limit = 1
    refused(ModelError, "prompt 0 has 2 tokens.*context of 1", q, short)
    refused(ModelError, "3 tokens, the target model 5", q, Table(2, vocab_size=5))
    refused(ModelError, "prompt 1: the draft model gave NaN", Broken(1), p, prompts=[PROMPT, PROMPT])
    refused(ModelError, "prompt 0: the target model gave NaN", q, Broken(2))
