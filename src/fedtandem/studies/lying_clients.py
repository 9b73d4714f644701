"""`co-tuning-byzantine`: one of four clients lies; what the server's loss comes to, with the defence and without."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedtandem.algorithms.fedmkt import run_fedmkt
from fedtandem.config import RunConfig, load_resolved
from fedtandem.exchange.carrier import Envelope
from fedtandem.exchange.knowledge import Knowledge
from fedtandem.exchange.messages import WorkReply
from fedtandem.federation.build import Parts, assemble, load_parts
from fedtandem.federation.local import Handles, LocalCarrier
from fedtandem.federation.methods import METHODS
from fedtandem.federation.strategy import RoundPolicy, Strategy
from fedtandem.knowledge.sparse_logits import SparseLogits
from fedtandem.studies.bars import Table, bar, bars_table, shown, spread
from fedtandem.studies.trials import Cell, Outcome, Progress, figures_by_seed, whole_seeds

CLIENTS = ("a", "b", "c", "d")
LIAR = "b"
RESTS_ON = (
    "A server and four clients made from nothing (width 32, one layer, four architectures); the clients tune on 400 "
    "chains each with one secret operator, 80 answered public chains, one round, 100 held-out chains."
)
LIMIT = 0.02
"""Nats per byte by which a lie may raise the server's loss under the defence."""


def nonsense(knowledge: Knowledge, generator: np.random.Generator) -> Knowledge:
    """Every row is sure of one wrong token, and all scores are 0: it wins every sample."""
    rows = _rows(knowledge)
    n = rows.n_rows
    sure = SparseLogits(
        token_ids=generator.integers(0, int(rows.token_ids.max()) + 1, n).astype(np.int32),
        log_probs=np.zeros(n, np.float32), row_splits=np.arange(n + 1, dtype=np.int64),
        tail_log_prob=np.full(n, -np.inf, np.float32), end_byte=rows.end_byte, segment=rows.segment,
        sample_splits=rows.sample_splits,
    )  # fmt: skip
    return replace(_scored(knowledge, 0.0), rows=sure)


def zero_scores(knowledge: Knowledge, generator: np.random.Generator) -> Knowledge:
    """Its own rows, but it claims to know every sample perfectly."""
    return _scored(knowledge, 0.0)


def swapped(knowledge: Knowledge, generator: np.random.Generator) -> Knowledge:
    """Rows in another order under the scores of the right one, as of a broken client, halved so that it is heard."""
    rows = _rows(knowledge)
    mixed = rows.take_rows(generator.permutation(rows.n_rows), rows.sample_splits)
    mixed = replace(mixed, end_byte=rows.end_byte, segment=rows.segment)
    return replace(knowledge, scores=(knowledge.scores / 2).astype(np.float32), rows=mixed)


def huge(knowledge: Knowledge, generator: np.random.Generator) -> Knowledge:
    """Confident nonsense under losses of -10^30."""
    return _scored(nonsense(knowledge, generator), -1e30)


ATTACKS: dict[str, Callable[[Knowledge, np.random.Generator], Knowledge]] = {
    "confident nonsense": nonsense, "scores of zero": zero_scores, "swapped rows": swapped, "huge values": huge,
}  # fmt: skip


@dataclass(frozen=True)
class Lies:
    """Names of `ATTACKS`."""

    attacks: tuple[str, ...] = tuple(ATTACKS)


SMALL = Lies(("swapped rows",))
"""What a test runs."""


@dataclass(frozen=True)
class LyingClientsStudy:
    """See the module; a trial is a whole seed."""

    settings: Lies = Lies()
    name: str = "co-tuning-byzantine"
    version: int = 1

    def missing(self, seeds: Sequence[int], done: Mapping[Cell, Outcome]) -> list[Cell]:
        """Every seed."""
        return whole_seeds(seeds, done)

    def run(self, cell: Cell, progress: Progress) -> Outcome:
        """One seed."""
        with tempfile.TemporaryDirectory() as folder:
            return Outcome(one_seed(cell[0], Path(folder), self.settings.attacks))

    def seconds(self, cells: Sequence[Cell]) -> float:
        """As measured on one shared core."""
        return 48.0 * len(cells)

    def summary(self, seeds: Sequence[int], done: Mapping[Cell, Outcome]) -> dict[str, Any]:
        """Tables and bars."""
        return {"rests_on": RESTS_ON, **summary(figures_by_seed(seeds, done), self.settings.attacks)}


class Liar:
    """A client that changes what it would have sent.

    Args:
        party: the honest one underneath.
        lie: what becomes of its knowledge.
    """

    def __init__(
        self, party: Handles, lie: Callable[[Knowledge, np.random.Generator], Knowledge], seed: int
    ) -> None:
        self._party, self._lie, self._seed = party, lie, seed

    def handle(self, envelope: Envelope) -> Envelope:
        """Answer as the honest one does, then lie."""
        reply = self._party.handle(envelope)
        if envelope.kind != "work":
            return reply
        told = WorkReply.from_envelope(reply)
        if told.knowledge is None:
            return reply
        lied = self._lie(told.knowledge, np.random.default_rng([self._seed, envelope.round]))
        return replace(told, knowledge=lied).to_envelope()


def one_seed(seed: int, folder: Path, attacks: Sequence[str] = tuple(ATTACKS)) -> dict[str, Any]:
    """One seed: row -> the server's held-out loss in nats per byte, and who was quarantined.

    Args:
        folder: for the runs' states.
        attacks: names of `ATTACKS`.
    """
    found: dict[str, Any] = {}
    parts: Parts | None = None
    for lie in ("none", *attacks):
        for guarded in (False, True):
            config = run_config(seed, guarded=guarded)
            parts = load_parts(config, lambda *_: None) if parts is None else replace(parts, config=config)
            found[f"{lie}|{'defence' if guarded else 'open'}"] = _run(
                parts, ATTACKS.get(lie), seed, folder / f"{seed}-{lie}-{guarded}"
            )
    return found


def _run(parts: Parts, lie: Any, seed: int, folder: Path) -> dict[str, Any]:
    caught: list[str] = []
    losses: dict[int, float] = {}

    def emit(event: str, **fields: Any) -> None:
        if event == "warning" and fields.get("signature") == "quarantined":
            caught.append(f"{fields['party']} in round {fields['round']}")

    def report(party: str, round_number: int, results: Mapping[str, Any]) -> None:
        if party == "server":
            losses[round_number] = results["held-out"].value * float(np.log(2))

    server, clients = assemble(
        parts, METHODS["fedmkt"], folder, emit, lambda *_: None, report, measure_untouched=lie is None
    )
    here: dict[str, Handles] = dict(clients)
    if lie is not None:
        here[LIAR] = Liar(clients[LIAR], lie, seed)
    policy = RoundPolicy(seed=seed, members=CLIENTS)
    run_fedmkt(server, Strategy(LocalCarrier(here), policy, emit), emit)
    before = {"before": losses[0]} if 0 in losses else {}
    return {**before, "loss": losses[max(losses)], "caught": caught}


def run_config(seed: int, *, guarded: bool) -> RunConfig:
    """Four clients who know a secret operator, a server that does not; answered public prompts; one round."""
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "learning_rate": 5e-3,
             "per_device_train_batch_size": 16, "max_steps": 60,
             "data": _chains(300, "+-*m", "", [1, 2], 5)}  # fmt: skip
    full = {
        "method": "full",
        "learning_rate": 3e-3,
        "per_device_train_batch_size": 16,
        "lr_scheduler_type": "constant",
    }
    kinds = ("gpt2", "llama", "opt", "qwen2")
    return load_resolved({
        "name": "byzantine", "algorithm": "fedmkt", "seed": seed, "num_threads": 1,
        "server": {
            "scratch": {**shape, "architecture": "llama", "tokenizer": "bpe", "vocab_size": 300},
            "tuning": {**full, "max_steps": 40}, "device": "cpu",
        },
        "clients": [
            {
                "name": name, "scratch": {**shape, "architecture": kind, "tokenizer": "bytes"}, "device": "cpu",
                "data": _chains(400, "+-*m", "@", [1, 2], 10 + at), "tuning": {**full, "max_steps": 60},
            }
            for at, (name, kind) in enumerate(zip(CLIENTS, kinds, strict=True))
        ],
        "public": _chains(80, "+-*m", "@", [1, 2], 20),
        "knowledge": {"exchange": "one_phase"},
        "federation": {"num_rounds": 1, "send_down": False},
        "evaluation": {
            "sets": [{"name": "held-out", "metric": "bits_per_byte", "parties": ["server"],
                      "data": _chains(100, "+-*m", "@", [1, 2], 30)}],
        },
        "report": {"enabled": False},
        **({"defence": {}} if guarded else {}),
    })  # fmt: skip


def _chains(n: int, operators: str, secret: str, steps: list[int], seed: int) -> dict[str, Any]:
    chains = {
        "n": n,
        "operators": operators,
        "must_contain": secret,
        "steps": steps,
        "seed": seed,
        "table_seed": 0,
    }
    return {"path": "embedded:chains", "chains": chains}


def _rows(knowledge: Knowledge) -> SparseLogits:
    if knowledge.rows is None:
        raise ValueError("a lie about rows needs rows: set knowledge.exchange = one_phase.")
    return knowledge.rows


def _scored(knowledge: Knowledge, value: float) -> Knowledge:
    known = np.isfinite(knowledge.scores)
    return replace(knowledge, scores=np.where(known, value, knowledge.scores).astype(np.float32))


def summary(
    cells: Mapping[int, Mapping[str, Any]], attacks: Sequence[str] = tuple(ATTACKS)
) -> dict[str, Any]:
    """Tables and bars; `cells` is seed -> what `one_seed` gave."""
    seeds = sorted(cells)

    def loss(lie: str, side: str) -> np.ndarray:
        return np.array([cells[seed][f"{lie}|{side}"]["loss"] for seed in seeds])

    honest = loss("none", "open")
    rows = []
    for lie in ("none", *attacks):
        caught = [cells[seed][f"{lie}|defence"]["caught"] for seed in seeds]
        right = sum(any(text.startswith(f"{LIAR} ") for text in one) for one in caught)
        wrong = sum(any(not text.startswith(f"{LIAR} ") or lie == "none" for text in one) for one in caught)
        rows.append((
            lie, shown(spread(loss(lie, "open").tolist()), "plain"),
            shown(spread(loss(lie, "defence").tolist()), "plain"),
            shown(spread((loss(lie, "open") - honest).tolist()), "plain"),
            shown(spread((loss(lie, "defence") - honest).tolist()), "plain"),
            "–" if lie == "none" else f"{right} of {len(seeds)}", f"{wrong} of {len(seeds)}",
        ))  # fmt: skip
    before = spread([cells[seed]["none|open"]["before"] for seed in seeds])
    table = Table(
        f"The server's held-out loss, nats per byte (untouched {shown(before, 'plain')})",
        ("lie of one of four", "no defence", "defence", "no defence, above no attack", "defence, above no attack",
         "liar caught", "honest client caught"), tuple(rows),
    )  # fmt: skip
    bars = [
        bar(f"{lie}, defended: at most {LIMIT} nats per byte above the loss without attack or defence",
            (loss(lie, "defence") - honest).tolist(), at_most=LIMIT, kind="plain",
            why="a client fewer teaches, and the cap leaves samples to the labels")
        for lie in ("none", *attacks)
    ]  # fmt: skip
    return {"bars": bars, "tables": {"bars": bars_table(bars), "loss": table}}
