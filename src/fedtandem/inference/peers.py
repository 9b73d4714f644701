"""Answers of the cloud that peers already paid for, found by embedding and served only behind gates.

Source: FedHLM, arXiv:2507.00082 (a similar enough peer's resolved token is reused); every gate beyond the cosine is a
choice, specification, section 8.
"""

import hmac
from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedtandem.errors import ConfigError
from fedtandem.inference.similarity import START

Floats = npt.NDArray[np.float32]

TTL_S = 24 * 3600.0
QUOTA = 10_000
"""Entries one client may insert."""
MAX_FAILED_AUDITS = 3
"""After so many wrong answers a client's entries are served no more."""
CLOCK_SKEW_S = 60.0


@dataclass(frozen=True)
class Attested:
    """One answer of the cloud, signed by it.

    Attributes:
        tenant, model: whose, and which LLM gave it.
        namespace: `gates.namespace`: the prompt's fingerprint; only equal ones share answers.
        context: `gates.text_gate` or `token_gate` of what was asked.
        answer: the resolved token or label, as bytes.
        time_s: when the cloud resolved it.
        signature: HMAC-SHA256 over all of the above; empty before `sign`.
    """

    tenant: str
    model: str
    namespace: bytes
    context: bytes
    answer: bytes
    time_s: float
    signature: bytes = b""

    def message(self) -> bytes:
        """What is signed: each part with its length, so that no two entries read alike."""
        parts = (
            self.tenant.encode(),
            self.model.encode(),
            self.namespace,
            self.context,
            self.answer,
            f"{self.time_s:.6f}".encode(),
        )
        return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def sign(entry: Attested, key: bytes) -> Attested:
    """The cloud's signature under the tenant's key."""
    return replace(entry, signature=hmac.digest(key, entry.message(), "sha256"))


def is_genuine(entry: Attested, key: bytes) -> bool:
    """Whether the signature belongs to exactly this content."""
    return hmac.compare_digest(entry.signature, hmac.digest(key, entry.message(), "sha256"))


@dataclass(frozen=True)
class Found:
    """What a look-up came to.

    Attributes:
        outcome: `hit`; `gate_refused`: near enough, but not surely the same; `miss`: nothing near.
        similarity: of the entry behind the outcome; -1 in an empty cache.
        entry: for a hit.
        inserted_by: its client, for audits.
    """

    outcome: Literal["hit", "gate_refused", "miss"]
    similarity: float
    entry: Attested | None = None
    inserted_by: str = ""


@dataclass(frozen=True)
class Inserted:
    """Whether an entry was taken, and why not."""

    taken: bool
    reason: Literal["", "not attested", "quota", "quarantined", "bad embedding"] = ""


class PeerCache:
    """An edge's store of attested answers.

    What is served is always found exactly, among the entries that pass the gates. What is near and does not pass them
    is only counted (`gate_refused`), and searching for that is most of the work of a look-up without a hit.

    Args:
        key: the tenant's secret, shared with its cloud.
        dimension: of the embeddings.
        delta_sim: least cosine of a hit.
        ttl_s: entries older than this are not served.
        quota: entries per client.
        index: how the nearest of all entries is found: "exact", or "usearch" (approximate; `pip install
            "fedtandem[ann]"`), worth it above some 10^5 entries.

    Raises:
        ConfigError: another index, or usearch is not installed.
    """

    def __init__(
        self,
        key: bytes,
        dimension: int,
        *,
        delta_sim: float = START,
        ttl_s: float = TTL_S,
        quota: int = QUOTA,
        max_failed_audits: int = MAX_FAILED_AUDITS,
        index: Literal["exact", "usearch"] = "exact",
    ) -> None:
        self.delta_sim = delta_sim
        self._key, self._ttl_s, self._quota, self._max_failed = key, ttl_s, quota, max_failed_audits
        self._entries: list[Attested] = []
        self._owners: list[str] = []
        self._inserted: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._vectors = np.zeros((64, dimension), dtype=np.float32)
        self._times = np.zeros(64)
        self._served = np.zeros(64, dtype=bool)
        """False for entries of quarantined clients."""
        self._behind: defaultdict[bytes, array[int]] = defaultdict(lambda: array("q"))
        """Namespace and context -> entries."""
        self._approximate = None if index == "exact" else _usearch(index, dimension)

    def __len__(self) -> int:
        return len(self._entries)

    def insert(self, client: str, embedding: npt.ArrayLike, entry: Attested) -> Inserted:
        """Offer an answer that the cloud resolved for this client.

        A label that the cloud did not sign, the client's own above all, is never taken.
        """
        vector = np.asarray(embedding, dtype=np.float32)
        norm = float(np.linalg.norm(vector)) if vector.shape == self._vectors.shape[1:] else 0.0
        if not (np.isfinite(norm) and norm > 0):
            return Inserted(False, "bad embedding")
        if self.is_quarantined(client):
            return Inserted(False, "quarantined")
        if not is_genuine(entry, self._key) or not len(entry.namespace) == len(entry.context) == 16:
            return Inserted(False, "not attested")
        if self._inserted[client] >= self._quota:
            return Inserted(False, "quota")
        n = len(self._entries)
        if n == len(self._vectors):
            self._grow()
        self._vectors[n] = vector / norm
        self._times[n], self._served[n] = entry.time_s, True
        self._behind[entry.namespace + entry.context].append(n)
        if self._approximate is not None:
            self._approximate.add(n, self._vectors[n])
        self._entries.append(entry)
        self._owners.append(client)
        self._inserted[client] += 1
        return Inserted(True)

    def look_up(self, embedding: npt.ArrayLike, namespace: bytes, context: bytes, now_s: float) -> Found:
        """The most similar entry that passes every gate, if it is similar enough.

        Args:
            embedding: of the uncertain token or text, (D,).
            namespace, context: from `gates`.
            now_s: the asker's clock, in the cloud's time.
        """
        n = len(self._entries)
        vector = np.asarray(embedding, dtype=np.float32)
        norm = float(np.linalg.norm(vector)) if vector.shape == self._vectors.shape[1:] else 0.0
        if n == 0 or not (np.isfinite(norm) and norm > 0):
            return Found("miss", -1.0)
        vector = vector / norm
        behind = np.array(self._behind.get(namespace + context, ()), dtype=np.int64)
        times = self._times[behind]
        is_young = (times > now_s - self._ttl_s) & (times <= now_s + CLOCK_SKEW_S)
        behind = behind[self._served[behind] & is_young]
        if len(behind):
            # Picking out many vectors takes longer than multiplying them all.
            few = 8 * len(behind) < n
            cosine = self._vectors[behind] @ vector if few else (self._vectors[:n] @ vector)[behind]
            best = int(np.argmax(cosine))
            entry, owner = self._entries[behind[best]], self._owners[behind[best]]
            # Checked again at serving: what lies in memory may have been changed since.
            if cosine[best] >= self.delta_sim and is_genuine(entry, self._key):
                return Found("hit", float(cosine[best]), entry, owner)
        nearest = self._nearest(vector)
        return Found("gate_refused" if nearest >= self.delta_sim else "miss", nearest)

    def _nearest(self, vector: Floats) -> float:
        """The largest cosine among all entries."""
        if self._approximate is None:
            return float((self._vectors[: len(self._entries)] @ vector).max())
        return 1 - float(self._approximate.search(vector, 1).distances[0])

    def report_audit(self, client: str, right: bool) -> None:
        """An entry of this client was served and the cloud asked afterwards; too many faults take it out."""
        if right:
            return
        self._failed[client] += 1
        if self.is_quarantined(client):
            mine = [i for i, owner in enumerate(self._owners) if owner == client]
            self._served[mine] = False

    def is_quarantined(self, client: str) -> bool:
        """Whether a client's entries are refused."""
        return self._failed[client] >= self._max_failed

    def _grow(self) -> None:
        self._vectors, self._times, self._served = (
            np.concatenate([old, np.zeros_like(old)]) for old in (self._vectors, self._times, self._served)
        )


def _usearch(index: str, dimension: int) -> Any:
    if index != "usearch":
        raise ConfigError(f"index {index!r} is unknown; use exact or usearch.")
    try:
        from usearch.index import Index
    except ImportError as error:
        raise ConfigError('index usearch needs usearch: pip install "fedtandem[ann]".') from error
    return Index(ndim=dimension, metric="cos", dtype="f32")


def nearest_label(
    embeddings: npt.ArrayLike, labels: Sequence[int] | npt.ArrayLike, queries: npt.ArrayLike, k: int = 5
) -> npt.NDArray[np.int64]:
    """kNN over labelled texts by cosine: the baseline that peers must beat. Ties go to the lower label.

    Args:
        embeddings, labels: (N, D), (N,).
        queries: (M, D).

    Returns:
        (M,) labels.
    """
    e, q = (np.asarray(a, dtype=np.float32) for a in (embeddings, queries))
    e, q = (a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-12) for a in (e, q))
    y = np.asarray(labels, dtype=np.int64)
    k = min(k, len(e))
    found = np.empty(len(q), dtype=np.int64)
    for start in range(0, len(q), 512):
        near = np.argpartition(-(q[start : start + 512] @ e.T), k - 1, axis=1)[:, :k]
        votes = np.zeros((len(near), int(y.max()) + 1))
        np.add.at(votes, (np.arange(len(near))[:, None], y[near]), 1)
        found[start : start + 512] = votes.argmax(axis=1)
    return found
