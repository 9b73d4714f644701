"""What a calibration came to, for its folder, the terminal and machines."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedtandem.atomic import write_text
from fedtandem.inference.policy import Policy, policy_to_json
from fedtandem.inference.threshold import MIN_AUDITS

MUCH_REFUSED = 0.25
"""Share of kept drafts from which on a policy is warned of."""
MOST_SENT = 0.99
"""Share of calls from which on nothing is said about the drafts that are kept."""


@dataclass(frozen=True, eq=False)
class CalibrationResult:
    """A policy, and what is told of how it was learnt.

    Attributes:
        names: whose thresholds they are; edges, where clients are masked.
        bytes_up, bytes_down: by level (clients and edges; edges and cloud).
        counted: edge -> the sites that were counted; empty in one process.
    """

    policy: Policy
    names: tuple[str, ...]
    bytes_up: Mapping[str, int]
    bytes_down: Mapping[str, int]
    counted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def put(self, output: Path, *, json_output: bool) -> str:
        """Write the policy's file; what came out, in words or as JSON."""
        write_text(output, policy_to_json(self.policy))
        return _as_json(self, output) if json_output else _in_words(self, output)

    def to_json(self) -> str:
        """All of it but the policy, which has a file of its own."""
        return json.dumps({key: value for key, value in vars(self).items() if key != "policy"}, indent=1)

    @classmethod
    def from_json(cls, text: str, policy: Policy) -> "CalibrationResult":
        """What `to_json` wrote."""
        told = json.loads(text)
        counted = {edge: tuple(names) for edge, names in told["counted"].items()}
        return cls(policy, tuple(told["names"]), told["bytes_up"], told["bytes_down"], counted)


def _as_json(done: CalibrationResult, output: Path) -> str:
    policy = done.policy
    return json.dumps(
        {
            "output": str(output), "learn": policy.learn, "price": policy.price, "share": policy.share,
            "error": policy.error, "tau": policy.overall.tau, "interval": policy.overall.interval,
            "clusters": {name: entry.tau for name, entry in policy.clusters.items()},
            "clients": {name: entry.tau for name, entry in policy.clients.items()},
            "audit_rate": policy.audit_rate, "audits": policy.overall.audits, "labelled": policy.overall.labelled,
            "tokens": policy.overall.tokens, "similarity": policy.similarity, "bytes_up": done.bytes_up,
            "bytes_down": done.bytes_down,
        }
    )  # fmt: skip


def _in_words(done: CalibrationResult, output: Path) -> str:
    policy, names = done.policy, done.names
    everyone = policy.overall
    summed = sum(map(len, done.counted.values())) if not policy.clients else 0
    whom = f"{len(names)} clients in {len(policy.clusters)} clusters"
    if summed:
        whom = f"{summed} sites, one for each of {len(names)} edges"
    where = "these traces" if done.counted else "this trace"
    lines = [
        f"{output}: {policy.learn} thresholds on {policy.measure} for {whom}",
        f"on {where} at most {policy.share:.1%} of calls and an estimated {100 * policy.error:.2f} points of error "
        f"let through ({policy.feedback}), at a price of {policy.price:.3f}; `fedtandem route` on another "
        "trace checks it",
        f"{'scope':<22}{'tau':>7}  {'95 % interval':<17}{'audits':>8}{'labelled':>10}{'tokens':>9}  from",
        _scope_line("all", everyone),
        *(_scope_line(f"cluster {name}", entry) for name, entry in policy.clusters.items()),
    ]
    ranked = sorted(policy.clients.items(), key=lambda item: item[1].tau)
    shown = ranked if len(ranked) <= 20 else [*ranked[:5], *ranked[-5:]]
    lines += [_scope_line(name, entry) for name, entry in shown]
    if len(shown) < len(ranked):
        lines.append(f"... and {len(ranked) - len(shown)} clients between these, in the file")
    # Share and error are upper bounds: where next to all is sent, their quotient says nothing of what is kept.
    refused = policy.error / (1 - policy.share) if policy.share < MOST_SENT else 0.0
    if refused > MUCH_REFUSED:
        lines.append(
            f"WARNING: of the drafts that are kept the LLM would refuse {refused:.0%}. These two models seldom agree "
            "token for token; between different tokenizers the same text cut otherwise counts as refused. Give a "
            "larger budget, or draft for `generate --mode exact`, which loses nothing."
        )
    if everyone.audits < MIN_AUDITS and everyone.labelled < everyone.tokens:
        lines.append(
            f"WARNING: {everyone.audits} audits in all, fewer than {MIN_AUDITS}: nobody knows how often kept "
            "answers are wrong. Raise --audit."
        )
    if policy.similarity is not None:
        s = policy.similarity
        lines.append(
            f"peers: similarity from {s['delta']:.3f}, {s['audits']} audited answers, precision at least "
            f"{s['lower_bound']:.3f} (95 %): "
            + ("they may answer" if s["is_proven"] else "not proven, so they only draft")
        )
    for edge, sites in done.counted.items():
        how = ", as one sum under masks" if summed else ""
        lines.append(f"edge {edge}: {', '.join(sites) or 'nobody'}{how}")
    moved = ", ".join(
        f"{level} {done.bytes_up[level]:,} up, {done.bytes_down[level]:,} down" for level in done.bytes_up
    )
    lines.append(f"bytes: {moved}")
    return "\n".join(lines)


def _scope_line(name: str, entry: Any) -> str:
    ends = f"{entry.interval[0]:.3f} to {entry.interval[1]:.3f}" if entry.interval else "none"
    counts = f"{entry.audits:>8,}{entry.labelled:>10,}{entry.tokens:>9,}"
    return f"{name:<22}{entry.tau:>7.3f}  {ends:<17}{counts}  {entry.source}"
