"""`membership`: can one tell, from a tuned client's losses, which samples it was tuned on? With and without DP-SGD.

The attack is the loss threshold: a sample the model finds likelier than most is called a member (Yeom et al.,
arXiv:1709.01604). Its AUC is the chance that a private sample has a lower loss than a fresh one from the same source:
0.5 is a guess, 1 is certain.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fedtandem.data.chains import ChainsSource
from fedtandem.data.public import Sample
from fedtandem.models.language_model import LanguageModel, collate
from fedtandem.models.load import ModelSpec, load_model
from fedtandem.studies.bars import Bar, Table, bar, bars_table, number, shown, spread
from fedtandem.studies.trials import Cell, Outcome, Progress, figures_by_seed, whole_seeds
from fedtandem.tuning.accountant import Spending
from fedtandem.tuning.dp_sgd import DPSettings, PrivateTraining, grant
from fedtandem.tuning.phase import Example, PhaseSettings, count_steps, train_phase

MODEL = "embedded:chains-client-a"
MEMBERS, FRESH = 60, 200
DELTA = 1e-3
"""Below 1 / MEMBERS; a real site has more samples and a smaller one."""
EPSILONS = (8.0,)
MAX_GRAD_NORM = 0.01
"""About the median of the samples' gradients before tuning (seed 0 was looked at); with 1.0 nothing is learnt."""
SETTINGS = PhaseSettings(
    learning_rate=2e-3, num_train_epochs=25, batch_size=10, weight_decay=0.0, lr_scheduler_type="constant"
)
SMALL = replace(SETTINGS, num_train_epochs=2)
"""What a test runs."""
PEFT = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear"}
ARMS = ("untouched", "plain", *(f"dp, epsilon {epsilon:g}" for epsilon in EPSILONS))
LIMIT = 0.55
RESTS_ON = (
    f"An adapter on {MODEL}, {MEMBERS} private chains of two steps with a secret operator (a table per seed), "
    f"{SETTINGS.num_train_epochs:g} passes over them; fresh chains with the same table."
)


@dataclass(frozen=True)
class MembershipStudy:
    """See the module; a trial is a whole seed."""

    settings: PhaseSettings = SETTINGS
    name: str = "membership"
    version: int = 1

    def missing(self, seeds: Sequence[int], done: Mapping[Cell, Outcome]) -> list[Cell]:
        """Every seed."""
        return whole_seeds(seeds, done)

    def run(self, cell: Cell, progress: Progress) -> Outcome:
        """One seed."""
        return Outcome(one_seed(cell[0], self.settings))

    def seconds(self, cells: Sequence[Cell]) -> float:
        """As measured on one shared core."""
        return 19.0 * len(cells)

    def summary(self, seeds: Sequence[int], done: Mapping[Cell, Outcome]) -> dict[str, Any]:
        """Tables and bars."""
        return {"rests_on": RESTS_ON, **summary(figures_by_seed(seeds, done))}


class Memory:
    """A ledger that lasts as long as one phase."""

    def __init__(self) -> None:
        self.lines: list[Spending] = []

    def read(self) -> list[Spending]:
        return list(self.lines)

    def add(self, spending: Spending) -> None:
        self.lines.append(spending)


def one_seed(
    seed: int, settings: PhaseSettings = SETTINGS, members: int = MEMBERS, fresh: int = FRESH
) -> dict[str, Any]:
    """One seed, with a secret table of its own: per arm the attack's AUC and the losses behind it."""
    private, others = samples(seed, members, fresh)
    lm = load_model(ModelSpec(MODEL, tuning_method="lora", peft=PEFT, seed=seed, device="cpu"))
    untouched = lm.state()
    found: dict[str, Any] = {}
    for arm in ARMS:
        lm.load_state(untouched)
        spent = tune(lm, private, arm, seed, settings)
        inside, outside = losses(lm, private), losses(lm, others)
        found[arm] = {
            "auc": auc(inside, outside), "members": float(inside.mean()), "fresh": float(outside.mean()), **spent,
        }  # fmt: skip
    return found


def samples(seed: int, members: int, fresh: int) -> tuple[list[Sample], list[Sample]]:
    """Chains of two steps with a secret operator: those tuned on, and others no party has seen."""
    chains = ChainsSource(
        n=members + fresh,
        operators=tuple("+-*m"),
        must_contain=("@",),
        steps=(2,),
        seed=100 + seed,
        table_seed=seed,
    )
    rows = chains.samples()
    seen = {row.prompt for row in rows[:members]}
    return rows[:members], [row for row in rows[members:] if row.prompt not in seen]


def tune(
    lm: LanguageModel, private: Sequence[Sample], arm: str, seed: int, settings: PhaseSettings
) -> dict[str, float]:
    """One private phase as this arm has it; what it spent."""
    if arm == "untouched":
        return {}
    examples = [Example(text) for text in _encoded(lm, private)]
    if arm == "plain":
        train_phase(lm, examples, settings, seed=seed)
        return {"epsilon": math.inf}
    budget = DPSettings(DELTA, target_epsilon=float(arm.rpartition(" ")[2]), max_grad_norm=MAX_GRAD_NORM)
    key = np.random.default_rng(seed).bytes(32)  # known, so that the study can be repeated; a site's is not
    steps = grant(
        PrivateTraining(budget, Memory(), key), arm, f"seed {seed}", n_examples=len(examples),
        update_size=settings.batch_size, steps=count_steps(len(examples), settings), phases=1,
    )  # fmt: skip
    if steps is None:
        raise RuntimeError("a fresh budget was spent")
    train_phase(lm, examples, replace(settings), seed=seed, dp=steps)
    return {"epsilon": steps.report.epsilon, "sigma": steps.report.noise_multiplier}


@torch.no_grad()
def losses(lm: LanguageModel, rows: Sequence[Sample]) -> np.ndarray:
    """Mean negative log-likelihood of each answer's tokens, in nats; (N,)."""
    texts, found = _encoded(lm, rows), []
    for start in range(0, len(texts), 50):
        batch = collate(texts[start : start + 50], lm.tokenizer.pad_id)
        nll = F.cross_entropy(lm.logits_at(batch).float(), batch.targets, reduction="none").numpy()
        ends = batch.splits.numpy()
        found += [nll[first:last].mean() for first, last in pairwise(ends.tolist())]
    return np.array(found)


def auc(members: np.ndarray, fresh: np.ndarray) -> float:
    """Chance that a member's loss lies below a fresh sample's; ties count half."""
    order = np.sort(fresh)
    below = np.searchsorted(order, members, side="left")
    above = len(fresh) - np.searchsorted(order, members, side="right")
    return float((above + (len(fresh) - below)).mean() / 2 / len(fresh))


def _encoded(lm: LanguageModel, rows: Sequence[Sample]) -> list[Any]:
    return lm.tokenizer.encode_many(
        [(row.prompt, row.answer or "") for row in rows], max_length=64, eos=[row.eos for row in rows]
    )


def summary(cells: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Tables and bars; `cells` is seed -> what `one_seed` gave."""

    def of(arm: str, what: str) -> list[float]:
        return [cells[seed][arm][what] for seed in sorted(cells)]

    rows = tuple(
        (
            arm, shown(spread(of(arm, "auc")), "plain"), ", ".join(number(x, "plain") for x in of(arm, "auc")),
            shown(spread(of(arm, "members")), "plain"), shown(spread(of(arm, "fresh")), "plain"),
        )
        for arm in ARMS
    )  # fmt: skip
    table = Table(
        "The attack, and what tuning was worth",
        ("tuned", "AUC (95 % t over seeds)", "per seed", "loss on members, nats", "loss on fresh samples, nats"), rows,
    )  # fmt: skip
    bars = _bars(of)
    return {"bars": bars, "tables": {"bars": bars_table(bars), "attack": table}}


def _bars(of: Any) -> list[Bar]:
    gained = spread([a - b for a, b in zip(of("untouched", "fresh"), of(ARMS[2], "fresh"), strict=True)])
    gains = gained.interval is not None and gained.interval[0] > 0
    return [
        bar("without DP the attack works: AUC at least 0.6", of("plain", "auc"), at_least=0.6, kind="plain"),
        *(
            bar(f"{arm}: AUC at most {LIMIT}", of(arm, "auc"), at_most=LIMIT, kind="plain",
                why="the bound that epsilon gives is looser than this limit")
            for arm in ARMS[2:]
        ),
        Bar(f"{ARMS[2]}: tuning still lowers the loss on fresh samples (nats): interval above 0",
            shown(gained, "plain"), gained, gains, "" if gains else "so few samples and so much noise"),
    ]  # fmt: skip
