"""What a run cost: updates, CPU seconds by kind of work, bytes by direction."""

from dataclasses import dataclass
from statistics import mean

from fedtandem.reports.record import SERVER, RunRecord, StudyRecord
from fedtandem.reports.verdicts import Payload

TRAINING = frozenset({"private", "public"})
MEASURING = frozenset({"evaluate"})
PREPARING = frozenset({"load", "pretrain"})
BYTES_PER_WEIGHT = 2
"""FedAvg is given its cheapest form: weights in 16 bits."""


@dataclass(frozen=True)
class Cost:
    """What one method took, all parties together.

    Attributes:
        updates: optimizer updates.
        training, exchange, evaluation: CPU seconds of tuning; of public passes, writing, alignment, selection,
            transport and coding; of measuring.
        up, down: payload bytes.
    """

    method: str
    updates: float
    training: float
    exchange: float
    evaluation: float
    up: float
    down: float

    @property
    def total(self) -> float:
        """CPU seconds in all."""
        return self.training + self.exchange + self.evaluation


def run_costs(run: RunRecord) -> tuple[Cost, ...]:
    """The cost of each method of a run, in the order they ran."""
    costs = []
    for method in run.methods:
        phases = [p for p in run.phases if p.method == method]
        spent = dict.fromkeys(("training", "exchange", "evaluation"), 0.0)
        for p in phases:
            kind = "training" if p.phase in TRAINING else "evaluation" if p.phase in MEASURING else "exchange"
            spent[kind] += 0.0 if p.phase in PREPARING else p.cpu_seconds
        traffic = [t for t in run.traffic if t.method == method]
        costs.append(
            Cost(
                method,
                sum(p.steps for p in phases),
                **spent,
                up=sum(t.up for t in traffic),
                down=sum(t.down for t in traffic),
            )
        )
    return tuple(costs)


def seconds_by_phase(run: RunRecord, method: str) -> tuple[tuple[str, float], ...]:
    """CPU seconds of each kind of work of a method, most first."""
    total: dict[str, float] = {}
    for p in run.phases:
        if p.method == method:
            total[p.phase] = total.get(p.phase, 0.0) + p.cpu_seconds
    return tuple(sorted(total.items(), key=lambda item: -item[1]))


def run_payload(run: RunRecord) -> Payload | None:
    """The exchange of the run's method beside FedAvg of the clients' trainable weights; None without an exchange."""
    spent = _per_round(run, run.main)
    if not spent:
        return None
    averaged = _per_round(run, "fedavg")
    trainable = [
        float(model.get("trainable", 0))
        for party, model in run.about.get("models", {}).items()
        if party != SERVER
    ]
    weights = 2 * BYTES_PER_WEIGHT * mean(trainable) if trainable else 0.0
    return Payload(run.main, spent, averaged or weights, measured=bool(averaged))


def _per_round(run: RunRecord, method: str) -> float:
    """Bytes up and down of one client in one round, on average."""
    traffic = [t for t in run.traffic if t.method == method]
    rounds = max((t.round for t in traffic), default=0)
    clients = len({t.party for t in traffic})
    # Round 0 carries the cards, and the last message has a number of its own: T rounds are T + 1 messages.
    rounds = min(rounds, run.num_rounds or rounds)
    return sum(t.up + t.down for t in traffic) / (rounds * clients) if rounds and clients else 0.0


def study_payload(study: StudyRecord) -> Payload | None:
    """As `run_payload`, from a study's table."""
    config = study.summary.get("config", {})
    rounds = int(config.get("federation", {}).get("num_rounds", 0))
    clients = [m for party, m in study.summary.get("models", {}).items() if party != SERVER]
    main = study.summary.get("algorithm", "")
    spent = {b["method"]: [] for b in study.summary["budgets"]}  # type: dict[str, list[float]]
    for b in study.summary["budgets"]:
        spent[b["method"]].append(float(b["up"] + b["down"]))
    if not rounds or not clients or not mean(spent.get(main, [0.0])):
        return None
    share = 1 / (rounds * len(clients))
    averaged = mean(spent.get("fedavg", [0.0])) * share
    weights = 2 * BYTES_PER_WEIGHT * mean(float(m.get("trainable", 0)) for m in clients)
    return Payload(main, mean(spent[main]) * share, averaged or weights, measured=bool(averaged))


def study_costs(study: StudyRecord) -> tuple[Cost, ...]:
    """The cost of each row of a study, mean over its seeds."""
    rows: dict[str, list[dict[str, float]]] = {}
    for b in study.summary["budgets"]:
        rows.setdefault(b["method"], []).append(
            {"updates": sum(b["updates"].values()), "cpu": b["cpu_seconds"], "up": b["up"], "down": b["down"]}
        )
    return tuple(
        Cost(
            method,
            mean(b["updates"] for b in seeds),
            mean(b["cpu"] for b in seeds),
            0.0,
            0.0,
            mean(b["up"] for b in seeds),
            mean(b["down"] for b in seeds),
        )
        for method, seeds in rows.items()
    )
