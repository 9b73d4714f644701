"""Alignment, transport and vocabulary maps against plain baselines, in one process on one core.

    python benchmarks/alignment.py [--json FILE]

Definitions
- tokens: base positions (answer tokens and EOS) of windows of English prose, about 256 base tokens each.
- align + transport: `align_bytes` over the whole set, then `transport_bytes` of rows with exactly k entries.
- per-token DTW: a straightforward reading of the paper in plain Python, on a sample of the same windows: the
  full table of edit distances (rapidfuzz, one call per cell), the path, and one dict of k entries per token.
- mined table: `min_ed_map` of the whole teacher vocabulary (50k -> 32k: gpt2 -> llama2).
- brute force: every inexact teacher token against every base token, one rapidfuzz call per pair, measured on a
  sample of teacher tokens and scaled to all of them: an extrapolation.
CPU seconds of this process; best of three for align + transport, a single run for the rest.
"""

import argparse
import gzip
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from rapidfuzz.distance import Levenshtein

from fedtandem.alignment.sequence import EndTable, align_bytes, end_table
from fedtandem.alignment.transport import transport_bytes
from fedtandem.alignment.vocabulary import byte_map, min_ed_map, with_marker_of
from fedtandem.knowledge.sparse_logits import SparseLogits
from fedtandem.models.encoded import Encoded
from fedtandem.models.tokenizer import TextTokenizer

WINDOW_BYTES = 1100
N_WINDOWS = 200
DTW_WINDOWS = 4
BRUTE_TOKENS = 150


def main() -> None:
    parser = argparse.ArgumentParser(description="alignment, transport and vocabulary maps")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    shared = Path(os.environ.get("FEDTANDEM_SHARED", "../shared"))
    base, teacher = (
        TextTokenizer.from_pretrained(shared / "tokenizers" / name) for name in ("llama2", "gpt2")
    )
    texts = windows(shared / "data/english_novels/train.jsonl.gz")
    figures: dict[str, float] = {}
    for student, source, label in ((base, teacher, "32k <- 50k"), (teacher, base, "50k <- 32k")):
        for k in (64, 128):
            figures |= tokens_per_second(student, source, texts, k, label)
    figures |= dtw_baseline(base, teacher, texts, 64)
    figures["speed-up over per-token DTW, k = 64"] = (
        figures["align + transport 32k <- 50k, k = 64, tokens/s"] / figures["per-token DTW, k = 64, tokens/s"]
    )
    figures |= table_seconds(base, teacher)
    for name, value in figures.items():
        print(f"{name:<58} {value:>14,.1f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def windows(path: Path) -> list[str]:
    """Prose in pieces of about `WINDOW_BYTES`."""
    texts: list[str] = []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            text = json.loads(line)["text"]
            texts += [text[i : i + WINDOW_BYTES] for i in range(0, len(text) - WINDOW_BYTES, WINDOW_BYTES)]
            if len(texts) >= N_WINDOWS:
                break
    return texts[:N_WINDOWS]


def encoded(tokenizer: TextTokenizer, texts: list[str]) -> list[Encoded]:
    return tokenizer.encode_many([("", text) for text in texts], max_length=100_000)


def rows_with(k: int, ends: EndTable, unigrams: np.ndarray, vocab_size: int) -> SparseLogits:
    """Rows of k distinct ids, half of them frequent in the texts, with steeply falling probabilities."""
    rng = np.random.default_rng(0)
    n = ends.n_rows
    frequent = np.unique(unigrams)
    ids = np.empty((n, k), np.int32)
    for row in ids:
        some = np.concatenate(
            [rng.choice(frequent, k // 2, replace=False), rng.integers(0, vocab_size, 2 * k)]
        )
        row[:] = np.sort(np.unique(some)[rng.permutation(np.unique(some).size)[:k]])
    weights = np.sort(rng.exponential(size=(n, k + 1)) ** 4, axis=1) + 1e-6
    log_probs = np.log(weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return SparseLogits(
        ids.reshape(-1), log_probs[:, 1:].reshape(-1), np.arange(n + 1, dtype=np.int64) * k, log_probs[:, 0],
        ends.end_byte, ends.segment, ends.sample_splits,
    )  # fmt: skip


def tokens_per_second(
    base: TextTokenizer, teacher: TextTokenizer, texts: list[str], k: int, label: str
) -> dict[str, float]:
    own, theirs = encoded(base, texts), encoded(teacher, texts)
    mine, ends = end_table(own), end_table(theirs)
    rows = rows_with(k, ends, np.concatenate([text.targets for text in theirs]), teacher.vocab_size)
    id_map = byte_map(base.card, teacher.card, base.first_pieces)
    seconds = min(cpu(lambda: transport_bytes(rows, align_bytes(mine, ends), id_map, mine)) for _ in range(3))
    alone = min(cpu(lambda: align_bytes(mine, ends)) for _ in range(3))
    return {
        f"align + transport {label}, k = {k}, tokens/s": mine.n_rows / seconds,
        f"align alone {label}, tokens/s": mine.n_rows / alone,
        f"aligned share {label}, %": 100 * float((align_bytes(mine, ends) >= 0).mean()),
    }


def dtw_baseline(base: TextTokenizer, teacher: TextTokenizer, texts: list[str], k: int) -> dict[str, float]:
    own, theirs = encoded(base, texts[:DTW_WINDOWS]), encoded(teacher, texts[:DTW_WINDOWS])
    rows = rows_with(
        k, end_table(theirs), np.concatenate([text.targets for text in theirs]), teacher.vocab_size
    )
    id_map = byte_map(base.card, teacher.card, base.first_pieces).tolist()
    ids, values = rows.token_ids.reshape(-1, k).tolist(), np.exp(rows.log_probs).reshape(-1, k).tolist()

    def run() -> None:
        first = 0
        for a, b in zip(own, theirs, strict=True):
            mine = [base.card.tokens[i].replace("▁", "") for i in a.context_ids]
            other = [teacher.card.tokens[i].replace("Ġ", "") for i in b.context_ids]
            for i, places in enumerate(plain_dtw(mine, other)):
                if len(places) != 1:
                    continue
                carried: dict[int, float] = {}
                for token_id, p in zip(ids[first + places[0]], values[first + places[0]], strict=True):
                    target = id_map[token_id]
                    carried[target] = carried.get(target, 0.0) + p
                del i
            first += len(b.positions)

    return {f"per-token DTW, k = {k}, tokens/s": sum(len(text.positions) for text in own) / cpu(run)}


def plain_dtw(a: list[str], b: list[str]) -> list[list[int]]:
    """Dynamic time warping by two nested loops."""
    n, m = len(a), len(b)
    total = [[0.0] * m for _ in range(n)]
    for i in range(n):
        for j in range(m):
            before = []
            if i and j:
                before.append(total[i - 1][j - 1])
            if j:
                before.append(total[i][j - 1])
            if i:
                before.append(total[i - 1][j])
            total[i][j] = Levenshtein.distance(a[i], b[j]) + min(before, default=0)
    pairs: list[list[int]] = [[] for _ in range(n)]
    i, j = n - 1, m - 1
    pairs[i].append(j)
    while i or j:
        steps = [(i - 1, j - 1), (i, j - 1), (i - 1, j)]
        i, j = min(
            ((p, q) for p, q in steps if p >= 0 and q >= 0), key=lambda place: total[place[0]][place[1]]
        )
        pairs[i].append(j)
    return pairs


def table_seconds(base: TextTokenizer, teacher: TextTokenizer) -> dict[str, float]:
    seconds = cpu(lambda: min_ed_map(base.card, teacher.card))
    back = cpu(lambda: min_ed_map(teacher.card, base.card))
    by_bytes = cpu(lambda: byte_map(base.card, teacher.card, base.first_pieces))
    queries = [with_marker_of(base.card, teacher.card, token) for token in teacher.card.tokens]
    inexact = [query for query in queries if query not in base.card.ids]
    sample = [inexact[i] for i in np.random.default_rng(0).integers(0, len(inexact), BRUTE_TOKENS)]
    brute = cpu(lambda: [min((Levenshtein.distance(q, t), t) for t in base.card.tokens) for q in sample])
    return {
        "mined table 50k -> 32k, s": seconds,
        "mined table 32k -> 50k, s": back,
        "byte map 50k -> 32k, s": by_bytes,
        f"brute force 50k -> 32k, s (extrapolated from {BRUTE_TOKENS} tokens)": brute
        * len(inexact)
        / BRUTE_TOKENS,
    }


def cpu(run: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


if __name__ == "__main__":
    main()
