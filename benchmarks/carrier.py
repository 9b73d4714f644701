"""What the in-process carrier costs, and what one small message costs: the arithmetic of docs/scale.md.

    python benchmarks/carrier.py

- bodies: 4 clients, 50 MB each way, packed, checked and unpacked on both sides; nothing is coded.
- coding: the same with 4 x 10 MB each way of float16 and int32 arrays; beside it the codec alone on the same arrays.
- scalars: 1,000 clients that answer a frame with one number; and 100 and 1,000 threshold clients that say how many of
  their 300 tokens they skip (`survey`), every message encoded, checked and decoded.
- memory: the most that Python held beside the clients' replies, by rounds and by clients.

CPU seconds, one thread, the best of some repetitions.
"""

import time
import tracemalloc
from collections.abc import Callable

import numpy as np

from fedtandem.algorithms.threshold_parties import Edge, ThresholdClient
from fedtandem.exchange.calibration import CalibrationReply, CalibrationRequest
from fedtandem.exchange.carrier import SCHEMA, Envelope
from fedtandem.exchange.frame import decode_frame, encode_frame
from fedtandem.federation.local import Handles, LocalCarrier

MB = 1_000_000
TARGETS = {
    "400 MB of bodies, s": 0.5,
    "coding through the carrier / alone": 1.3,
    "1,000 scalar clients, s": 0.15,
}


class Says:
    """A client that answers with the same body each time."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def handle(self, envelope: Envelope) -> Envelope:
        return Envelope(envelope.kind, envelope.round, SCHEMA, self._body)


class Codes:
    """A client that decodes what comes and encodes its own arrays."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self._arrays = arrays

    def handle(self, envelope: Envelope) -> Envelope:
        decode_frame(envelope.body)
        return Envelope(envelope.kind, envelope.round, SCHEMA, encode_frame({}, self._arrays))


def best(work: Callable[[], object], repeats: int = 5) -> float:
    """CPU seconds: the least of `repeats`, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


def ask(parties: dict[str, Handles], body: Callable[[], bytes]) -> list[Envelope]:
    request = Envelope("work", 1, SCHEMA, body())
    answers = LocalCarrier(parties).ask(dict.fromkeys(parties, request), deadline_s=600)
    assert not answers.absences
    return list(answers.replies.values())


def bodies() -> dict[str, float]:
    body = np.random.default_rng(0).bytes(50 * MB)
    parties: dict[str, Handles] = {f"c{c}": Says(body) for c in range(4)}
    return {"400 MB of bodies, s": best(lambda: ask(parties, lambda: body))}


def coding() -> dict[str, float]:
    rng = np.random.default_rng(1)
    arrays = {
        "values": rng.normal(size=3_000_000).astype(np.float16),
        "ids": np.sort(rng.integers(0, 50_000, size=1_000_000)).astype(np.int32),
    }
    parties: dict[str, Handles] = {f"c{c}": Codes(arrays) for c in range(4)}

    def alone() -> None:
        down = encode_frame({}, arrays)  # who is sent the same gets the same bytes, packed once
        for _ in parties:
            decode_frame(down)
            decode_frame(encode_frame({}, arrays))

    def carried() -> None:
        for reply in ask(parties, lambda: encode_frame({}, arrays)):
            decode_frame(reply.body)

    codec, whole = best(alone), best(carried)
    return {
        "codec alone, s": codec,
        "coding through the carrier, s": whole, "coding through the carrier / alone": whole / codec,
    }  # fmt: skip


def scalars() -> dict[str, float]:
    body = encode_frame({"n": 1}, {})
    parties: dict[str, Handles] = {f"c{c}": Says(body) for c in range(1000)}
    return {"1,000 scalar clients, s": best(lambda: ask(parties, lambda: body))}


def thresholds(count: int) -> dict[str, float]:
    rng = np.random.default_rng(2)
    parties: dict[str, Handles] = {
        f"c{c:04d}": ThresholdClient(
            f"c{c:04d}", ("slm", "llm"), rng.random(300), rng.random(300), ["s"] * 300, np.arange(300), b"key"
        )
        for c in range(count)
    }
    request = CalibrationRequest(1, "survey", 0.1, 1.0, (), np.array([0.5])).to_envelope()
    carrier = LocalCarrier(parties)
    edge = Edge("edge", carrier)
    sizes: list[int] = []

    def one() -> None:
        answers = carrier.ask(dict.fromkeys(parties, request), deadline_s=600)
        sizes[:] = [reply.n_bytes for reply in answers.replies.values()]
        assert (
            sum(int(CalibrationReply.from_envelope(r).tokens[0]) for r in answers.replies.values())
            == 300 * count
        )

    told = edge.handle(request)
    spent = best(one)
    return {
        f"{count:,} threshold clients, s": spent,
        f"{count:,} threshold clients, ms a client": 1000 * spent / count,
        f"{count:,} threshold clients, bytes down to one": request.n_bytes,
        f"{count:,} threshold clients, bytes up from one": sizes[0],
        f"{count:,} threshold clients as one edge, s": best(lambda: edge.handle(request)),
        f"{count:,} threshold clients as one edge, bytes up": told.n_bytes,
        f"{count:,} threshold clients as one edge, ms to read": 1000
        * best(lambda: CalibrationReply.from_envelope(told)),
    }


def memory() -> dict[str, float]:
    """Peak of Python's own memory in MB, less the clients' bodies: 20 rounds of 4 clients, and one of 16, 5 MB each."""
    body = np.random.default_rng(3).bytes(5 * MB)

    def peak(clients: int, rounds: int) -> float:
        parties: dict[str, Handles] = {f"c{c}": Says(body) for c in range(clients)}
        carrier = LocalCarrier(parties)
        tracemalloc.start()
        for number in range(rounds):
            request = Envelope("work", number, SCHEMA, b"x")
            carrier.ask(dict.fromkeys(parties, request), deadline_s=600)
        most = tracemalloc.get_traced_memory()[1] / MB
        tracemalloc.stop()
        return most

    return {
        "memory, 4 clients x 5 MB, 1 round, MB": peak(4, 1),
        "memory, 4 clients x 5 MB, 20 rounds, MB": peak(4, 20),
        "memory, 16 clients x 5 MB, 1 round, MB": peak(16, 1),
    }


def main() -> None:
    found = bodies() | coding() | scalars() | thresholds(100) | thresholds(1000) | memory()
    for name, value in found.items():
        target = TARGETS.get(name)
        verdict = "" if target is None else f"   aim {target:g}: {'met' if value <= target else 'MISSED'}"
        print(f"{name:<58} {value:10.4f}{verdict}")


if __name__ == "__main__":
    main()
