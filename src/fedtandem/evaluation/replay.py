"""What would have happened: a policy applied to a trace, decision by decision."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedtandem.data.traces import Trace
from fedtandem.evaluation.scored_trace import Scored
from fedtandem.inference.peers import Attested, PeerCache, sign
from fedtandem.inference.policy import Policy, Resolved
from fedtandem.inference.routing import CLOUD, LOCAL, PEER, PEER_COST, Costs, choose_tier, is_sent, peers_pay

Floats = npt.NDArray[np.float64]
_REPLAY_KEY = b"a replay attests its own recorded answers"


@dataclass(frozen=True, eq=False)
class PeerTries:
    """What peers would have offered for each decision that was sent.

    Attributes:
        index: the decisions with an offer behind all gates, (M,).
        similarity: cosine of the best, (M,).
        answer: what it says, (M,).
        owner: who had asked the cloud, (M,) text.
        outcomes: how often a look-up was `hit` (an offer at any similarity), `gate_refused` or `miss`.
    """

    index: npt.NDArray[np.int64]
    similarity: Floats
    answer: npt.NDArray[np.int64]
    owner: npt.NDArray[Any]
    outcomes: Counter[str]


@dataclass(frozen=True, eq=False)
class Replay:
    """Every decision under a policy.

    Attributes:
        tau: of its client, (N,).
        sent: asked for help, (N,).
        tier: who answered, (N,) of LOCAL, PEER, CLOUD.
        score: quality of that answer, (N,); None where the truth is unknown.
        resolved: client -> which threshold it got and why.
        served: similarity of peer answers that were used; and whether the cloud would have said the same.
        served_right: (S,) bool.
    """

    tau: Floats
    sent: npt.NDArray[np.bool_]
    tier: npt.NDArray[np.int64]
    score: Floats | None
    resolved: dict[str, Resolved]
    served: Floats
    served_right: npt.NDArray[np.bool_]

    @property
    def calls(self) -> float:
        """Share of decisions the cloud answered."""
        return float((self.tier == CLOUD).mean())


def has_peers(trace: Trace) -> bool:
    """Whether the trace recorded what peers are found and gated by."""
    return trace.embedding is not None and trace.context is not None


def replay(trace: Trace, scored: Scored, policy: Policy, peer_cost: float = PEER_COST) -> Replay:
    """Apply a policy.

    Peers answer only where δ_sim was proven; else whatever they offer would be a draft for the cloud, a call all
    the same. And they are asked only where that is cheaper than the cloud, by the hit rate and the precision bound of
    the calibration; `peer_cost` is in units of a call.
    """
    resolved: dict[str, Resolved] = {}
    tau = np.empty(len(trace))
    keys = list(zip(trace.client.tolist(), trace.cluster.tolist(), trace.models(), strict=True))
    known: dict[Any, float] = {}
    for i, (client, cluster, models) in enumerate(keys):
        key = (client, models)
        if key not in known:
            found = policy.resolve(client, cluster, models)
            known[key] = found.tau
            resolved.setdefault(client, found)
        tau[i] = known[key]
    sent = is_sent(scored.u, tau)
    tier = np.where(sent, CLOUD, LOCAL).astype(np.int64)
    score = None
    if scored.slm_score is not None and scored.llm_score is not None:
        score = np.where(sent, scored.llm_score, scored.slm_score)
    similarity, right = np.zeros(0), np.zeros(0, dtype=bool)
    if has_peers(trace) and peers_may_answer(policy, peer_cost) and policy.similarity is not None:
        tries = try_peers(trace, sent, delta_sim=float(policy.similarity["delta"]))
        tier[tries.index] = PEER
        similarity, right = tries.similarity, tries.answer == trace.answer[tries.index]
        if score is not None and trace.label is not None and trace.slm_score is None:
            score[tries.index] = tries.answer == trace.label[tries.index]
        elif score is not None:
            # Scores of whole answers: the same answer has the same score, another one has none.
            score[tries.index] = np.where(right, score[tries.index], 0.0)
    return Replay(tau, sent, tier, score, resolved, similarity, right)


def peers_may_answer(policy: Policy, peer_cost: float) -> bool:
    """Whether peers are proven, and asking them first is expected to cost less than calling at once.

    Source: specification of FedHLM, section 8 (the complete form); keeping the draft is no choice any more where u > τ.
    """
    s = policy.similarity
    if s is None or not s["is_proven"]:
        return False
    hit_rate = float(s.get("hit_rate", 1.0))
    if policy.price <= 0:  # calls without limit: errors have no price to set against one
        return peers_pay(hit_rate, Costs(peer=peer_cost, cloud=1.0))
    # In units of a call an error costs 1/λ.
    costs = Costs(peer=peer_cost, cloud=1.0, error=1 / policy.price)
    return bool(choose_tier(np.inf, hit_rate, 1 - float(s["lower_bound"]), costs) == PEER)


def try_peers(trace: Trace, sent: npt.NDArray[np.bool_], *, delta_sim: float) -> PeerTries:
    """Go through a trace in order; each decision that is sent looks among its cluster's cloud answers so far.

    Only the cloud's answers are stored, and an answer that a peer gave is not stored again.

    Args:
        sent: (N,) bool.
        delta_sim: least cosine of a hit; -1 offers whatever passes the gates (to calibrate on).
    """
    if trace.embedding is None or trace.context is None:
        raise ValueError("the trace recorded no embedding and context; peers cannot be tried on it.")
    caches: dict[str, PeerCache] = {}
    found: list[tuple[int, float, int, str]] = []
    outcomes: Counter[str] = Counter()
    for i in np.flatnonzero(sent).tolist():
        cluster = str(trace.cluster[i])
        if cluster not in caches:
            caches[cluster] = PeerCache(
                _REPLAY_KEY, trace.embedding.shape[1], delta_sim=delta_sim, ttl_s=np.inf, quota=len(trace)
            )
        cache, vector = caches[cluster], trace.embedding[i]
        space, context = trace.info.llm.encode()[:16].ljust(16), bytes.fromhex(str(trace.context[i]))
        hit = cache.look_up(vector, space, context, now_s=float(i))
        outcomes[hit.outcome] += 1
        if hit.entry is not None:
            found.append((i, hit.similarity, int(hit.entry.answer), hit.inserted_by))
            if delta_sim > -1:
                continue
        answer = str(int(trace.answer[i])).encode()
        entry = Attested("replay", trace.info.llm, space, context, answer, float(i))
        cache.insert(str(trace.client[i]), vector, sign(entry, _REPLAY_KEY))
    index, similarity, answers, owners = ([row[j] for row in found] for j in range(4))
    return PeerTries(
        np.array(index, dtype=np.int64), np.array(similarity, dtype=np.float64),
        np.array(answers, dtype=np.int64), np.array(owners, dtype=np.str_), outcomes,
    )  # fmt: skip
