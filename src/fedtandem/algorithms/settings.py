"""What a co-tuning run is, in plain values: the algorithm knows no config file."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Flow:
    """The arrows of FedMKT's algorithm box that a method keeps.

    Every method and every control runs the same loop with some arrows taken out, so that two methods differ by
    those arrows alone: same batches, same number of updates, same seeds.

    Source: FedMKT, arXiv:2406.02224v4, appendix A.
    """

    private: bool = True
    """Step 1: clients tune on their private data."""
    clients_learn: bool = True
    """Step 11: clients train on the public set."""
    server_learns: bool = True
    """Step 6: the server trains on the public set."""
    up: bool = True
    """Steps 3-5: clients' knowledge reaches the server."""
    down: bool = True
    """Steps 8-10: the server's knowledge reaches the clients."""
    server_private: bool = False
    """Not in the paper's box: the server tunes on its own data each round (the centralised bound)."""
    aggregate_every: int = 0
    """Step 12, for equal clients: FedAvg of the trainable weights every so many rounds; 0 is never."""

    @property
    def asks_clients(self) -> bool:
        """Whether any client takes part."""
        return self.private or self.clients_learn or self.up

    @property
    def server_stands(self) -> bool:
        """Whether the LLM stays as it is, so that what it has told a client holds for all rounds."""
        return not (self.server_learns or self.server_private)


@dataclass(frozen=True)
class KnowledgeSettings:
    """How knowledge is made, aligned and sent (specification of FedMKT, sections 4-7 and 11)."""

    mode: Literal["bytes", "mined"] = "bytes"
    top_k: int = 64
    top_k_mass: float = 0.99
    positions: Literal["answer", "all"] = "answer"
    values: Literal["fp16", "u8"] = "fp16"
    two_phase: bool = True
    """Scores first, then only the rows that were chosen; the alternative sends all rows with the scores."""
    shared_downlink: bool = False
    """Send every client the same rows (the union); pays where a carrier sends equal content once."""
    on_self: Literal["skip", "self"] = "skip"
    """What a sample without a better teacher is taught: nothing, or the learner's own stale distribution."""
    batch_size: int = 32


@dataclass(frozen=True)
class Unlabelled:
    """The extension to public prompts without answers: a producer writes the answer it teaches."""

    max_new_tokens: int = 64
    confidence_keep: float = 0.6
    """The share of the written paths a receiver keeps: those with the highest mean log-probability per byte."""
    send_rows: bool = True
    """Send sparse logits with the paths, not the text alone."""
    temperature: float = 0.0
    """0: greedy paths; above 0: drawn ones."""
    returns_checked: bool = False
    """A client sends back, in place of its own path, a path of the server's of which it verified every step."""
    offers_checked: bool = False
    """A client sends only paths of which it verified every step."""


@dataclass(frozen=True)
class Rounds:
    """The clock of a run."""

    num_rounds: int = 5
    seed: int = 0
    evaluate_every: int = 1
    """Evaluate after every so many rounds; the last round always; 0 is only the last."""
    measure_untouched: bool = True
    """Evaluate the untouched models too (round 0)."""
    private_rounds: int | None = None
    """Clients tune on their private data in the first so many rounds; None: in all."""

    def tunes(self, round_number: int) -> bool:
        """Whether this round has a private phase."""
        last = self.num_rounds if self.private_rounds is None else min(self.num_rounds, self.private_rounds)
        return round_number <= last

    def evaluates(self, round_number: int) -> bool:
        """Whether the state after this round is evaluated."""
        if round_number == 0:
            return self.measure_untouched
        if round_number == self.num_rounds:
            return True
        return self.evaluate_every > 0 and round_number % self.evaluate_every == 0
