"""A threshold policy: which τ holds for whom, made for which models, and how far it may be trusted."""

import json
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedtandem.errors import ConfigError
from fedtandem.inference.threshold import BUILT_IN, CLIENT, CLUSTER, Thresholds

VERSION = 1

Models = tuple[str, str]
"""Fingerprints of the SLM and the LLM that feedback came from."""


@dataclass(frozen=True)
class Entry:
    """One scope's threshold.

    Attributes:
        tau: published.
        interval: 95 % bootstrap; None where none was drawn.
        source: the table it comes from: client, cluster, global, last, fixed or line.
        audits, labelled, tokens: what stands behind the scope's own table.
        models: (SLM, LLM) fingerprints it was calibrated with.
        cluster: of a client; empty for wider scopes.
        curve: τ of the scope's table at λ = 0, 0.05, ... 1; empty where it is not known.
    """

    tau: float
    interval: tuple[float, float] | None
    source: str
    audits: int
    labelled: int
    tokens: int
    models: tuple[Models, ...]
    cluster: str = ""
    curve: tuple[float, ...] = ()


@dataclass(frozen=True)
class Resolved:
    """What holds for a client: τ, the scope it comes from, and why no narrower one does (empty if it is its own);
    `curve` as of `Entry`."""

    tau: float
    scope: str
    reason: str
    curve: tuple[float, ...] = ()

    def tau_at(self, price: float, other: float) -> float:
        """τ where a call costs `other` instead of the `price` it was read off at.

        τ moves as the scope's own table does between the two prices. Without a table it moves on the straight line to
        (1, 1): at λ = 1 nothing is worth a call [choice]. Never falls with `other`.
        """
        if other <= price or self.tau >= 1:
            return self.tau
        if not self.curve:
            share = (min(other, 1.0) - price) / max(1e-9, 1 - price)
            return min(1.0, self.tau + (1 - self.tau) * share)
        prices = np.linspace(0, 1, len(self.curve))
        here, there = np.interp([price, other], prices, self.curve)
        return min(1.0, self.tau + float(there - here))


@dataclass(frozen=True)
class Policy:
    """Thresholds of a federation.

    Attributes:
        measure: the uncertainty τ is compared with.
        feedback: what β was made of.
        learn: histogram, line, gradient or fixed.
        goal: kind and value that were asked for.
        price: λ at which it was read off.
        audit_rate: of the round.
        share, error: at most this share of the calibration's tokens is sent, at most this mean β let through.
        overall, clusters, clients: the scopes.
        similarity: δ_sim for peers with its audits and precision bound; None where peers were not calibrated.
        bounds: upper bounds of β as steps, for `bounded` generation: lists `u` (ascending; each bound holds up to its
            u) and `beta_upper`; None where β may be negative.
        scorer: weights of the learned uncertainty, where that is the measure.
        history: cluster -> its τ before the first round and after each.
    """

    measure: str
    feedback: str
    learn: str
    goal: Mapping[str, Any]
    price: float
    audit_rate: float
    share: float
    error: float
    overall: Entry
    clusters: Mapping[str, Entry]
    clients: Mapping[str, Entry]
    similarity: Mapping[str, Any] | None = None
    bounds: Mapping[str, Any] | None = None
    scorer: Mapping[str, Any] | None = None
    history: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    version: int = field(default=VERSION)

    def beta_upper(self, u: float) -> float:
        """The upper bound of β at an uncertainty; 1 where none is known."""
        if self.bounds is None:
            return 1.0
        place = bisect_left(self.bounds["u"], u)
        return float(self.bounds["beta_upper"][place]) if place < len(self.bounds["u"]) else 1.0

    def thresholds(self, names: Sequence[str], clusters: Sequence[str]) -> Thresholds:
        """What is in force for these clients and clusters, to go on from; a newcomer takes the wider scope's."""
        overall = self.overall.tau
        of_cluster = {name: entry.tau for name, entry in self.clusters.items()}
        cluster = np.array([of_cluster.get(name, overall) for name in clusters])
        client = np.array([self.clients[n].tau if n in self.clients else overall for n in names])
        c, k = len(names), len(clusters)
        return Thresholds(
            self.price, client, cluster, overall, client, cluster, np.full(c, CLIENT), np.full(k, CLUSTER),
            np.full((c, 2), np.nan), np.full((k, 2), np.nan), np.full(2, np.nan), self.share, self.error,
        )  # fmt: skip

    def resolve(self, client: str, cluster: str, models: Models) -> Resolved:
        """The threshold for a client that runs these models.

        A scope calibrated with other models does not count: client, then cluster, then all, then the built-in τ.
        """
        reasons = []
        entry = self.clients.get(client)
        if entry is None:
            reasons.append(f"{client} is not in the policy")
        elif models in entry.models:
            return Resolved(entry.tau, "client", "", entry.curve)
        else:
            reasons.append(
                f"{client}'s threshold was made for {_named(entry.models)}, not for {_named((models,))}"
            )
        # A calibration may have grouped clients anew: whom it knows, it knows the cluster of.
        group = entry.cluster if entry is not None else cluster
        for scope, name, wider in (
            ("cluster", group, self.clusters.get(group)),
            ("global", "all", self.overall),
        ):
            if wider is None:
                reasons.append(f"cluster {name!r} is not in the policy")
            elif models in wider.models:
                return Resolved(wider.tau, scope, "; ".join(reasons), wider.curve)
            else:
                reasons.append(f"the {scope} threshold was made for {_named(wider.models)}")
        return Resolved(BUILT_IN, "built-in", "; ".join(reasons))


def _named(models: tuple[Models, ...]) -> str:
    shown = ", ".join(f"{slm[:12]} with {llm[:12]}" for slm, llm in models[:3])
    return shown + (f" and {len(models) - 3} more" if len(models) > 3 else "")


def policy_to_json(policy: Policy) -> str:
    """The policy as readable JSON, one line per entry."""
    whole = asdict(policy)
    clusters, clients = whole.pop("clusters"), whole.pop("clients")
    head = ",\n".join(
        f" {json.dumps(key)}: {json.dumps(whole[key])}"
        for key in ("version", *sorted(set(whole) - {"version"}))
    )
    parts = [head]
    for key, entries in (("clusters", clusters), ("clients", clients)):
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entries[name])}" for name in sorted(entries))
        parts.append(f' "{key}": {{\n{lines}\n }}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def read_policy(file: Path) -> Policy:
    """Read a policy's file.

    Raises:
        ConfigError: there is none, or it cannot be used.
    """
    if not file.is_file():
        raise ConfigError(f"there is no policy {file}; make one with `fedtandem calibrate`.")
    return policy_from_json(file.read_text(encoding="utf-8"), str(file))


def policy_from_json(text: str, where: str) -> Policy:
    """Read a policy back.

    Args:
        text: of the file.
        where: its name, for errors.

    Raises:
        ConfigError: no JSON, another version, or a field that is missing or cannot be.
    """
    mend = "Make it again with `fedtandem calibrate`."
    try:
        whole = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where} is no JSON: {error}. {mend}") from error
    if not isinstance(whole, dict) or whole.get("version") != VERSION:
        found = whole.get("version") if isinstance(whole, dict) else type(whole).__name__
        raise ConfigError(
            f"{where}: version = {found}; this program reads policies of version {VERSION}. {mend}"
        )
    try:
        return Policy(
            measure=str(whole["measure"]), feedback=str(whole["feedback"]), learn=str(whole["learn"]),
            goal=dict(whole["goal"]), price=float(whole["price"]), audit_rate=float(whole["audit_rate"]),
            share=float(whole["share"]), error=float(whole["error"]), overall=_entry(whole["overall"]),
            clusters={str(name): _entry(value) for name, value in whole["clusters"].items()},
            clients={str(name): _entry(value) for name, value in whole["clients"].items()},
            similarity=whole["similarity"], bounds=_bounds(whole.get("bounds")), scorer=whole.get("scorer"),
            history={str(name): tuple(map(float, taus)) for name, taus in whole["history"].items()},
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{where} cannot be read: {type(error).__name__}: {error}. {mend}") from error


def _bounds(value: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if value is None:
        return None
    u, upper = ([float(one) for one in value[key]] for key in ("u", "beta_upper"))
    if len(u) != len(upper) or u != sorted(u) or not all(0 <= one <= 1 for one in upper):
        raise ValueError("bounds need as many ascending u as beta_upper, and these in [0, 1]")
    return {"u": u, "beta_upper": upper}


def _entry(value: Mapping[str, Any]) -> Entry:
    tau = float(value["tau"])
    if not (math.isfinite(tau) and -1 <= tau <= 2):
        raise ValueError(f"tau = {tau}; expected a threshold in [0, 1]")
    ends = value["interval"]
    return Entry(
        tau=tau,
        interval=None if ends is None else (float(ends[0]), float(ends[1])),
        source=str(value["source"]),
        audits=int(value["audits"]), labelled=int(value["labelled"]), tokens=int(value["tokens"]),
        models=tuple((str(slm), str(llm)) for slm, llm in value["models"]),
        cluster=str(value["cluster"]), curve=tuple(map(float, value.get("curve", ()))),
    )  # fmt: skip
