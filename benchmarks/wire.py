"""What a next-token distribution costs on the wire, against plain ways of sending it, in one process.

    python benchmarks/wire.py [--json FILE]

Definitions
- frame: header, ids, values, tails, counts, end bytes, segments and samples, compressed; all of it is counted.
- bytes per entry: whole frame / kept tokens, at exactly k = 64 kept tokens and 4,000 positions in 500 samples.
- bytes per position: whole frame / positions, at the default (smallest k that reaches mass 0.99, at most 64).
- zipf: made logits, vocabulary 50,257: a Zipf law over ids in the order a BPE learns them, noise of 1.5 nats, and
  a few tokens that fit the position raised by up to 14 nats; half of the positions are nearly sure.
- even: made logits without any order among ids, vocabulary 65,536, noise of 3 nats: the dearest case for ids.
- even V = 151,936: the same for a Qwen-sized vocabulary, 1,000 positions, u8; the design's figures are at most 100,
  170 and 300 bytes per position at k = 32, 64 and 128.
- stories260k: the real model of that name on English prose, vocabulary 512 (present only beside the shared data).
- pickled lists: lists of Python floats and ints per sample, pickled: the form the reference implementation sends.
- safetensors: float32 values and int32 ids with row splits and tails, as the safetensors library writes them.
- KD-loss error: tail-aware distillation loss of a student against decoded rows, relative to the same loss against
  the rows before coding; the mean over 1,000 positions, and the gradient's relative distance. The student's
  logits are 0.8 of the teacher's plus noise of 1 nat.
"""

import argparse
import json
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import safetensors.numpy
import torch

from fedtandem.distillation.kd import sparse_kd_loss
from fedtandem.distillation.targets import SparseTargets
from fedtandem.exchange.coding import Values, pack_sparse, unpack_sparse
from fedtandem.exchange.frame import decode_frame, encode_frame
from fedtandem.knowledge.sparse_logits import SparseLogits, sparsify, splits_of

POSITIONS = 4000
PER_SAMPLE = 8
CHUNK = 250
KD_CHUNKS = 4
TOP_K = 64
MASS = 0.99
TARGETS: dict[Values, float] = {"fp16": 4.1, "u8": 3.2}
HEADER = {"message": "benchmark", "party": "clinic-a", "round": 3, "schema": 1, "vocab_hash": "0" * 64}

Result = TypeVar("Result")
Chunks = Callable[[int], torch.Tensor]
"""Number of a chunk -> its logits, (CHUNK, V) float32; made anew each time, to keep memory small."""


def main() -> None:
    parser = argparse.ArgumentParser(description="bytes of sparse logits on the wire")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    sources: dict[str, Chunks] = {"zipf V = 50,257": zipf_logits}
    shared = Path(os.environ.get("FEDTANDEM_SHARED", "../shared"))
    if (shared / "models/stories260k").is_dir():
        sources["stories260k V = 512"] = real_logits(shared)
    for source, chunks in sources.items():
        figures |= {f"{source}: {name}": value for name, value in measure(chunks).items()}
    for values in TARGETS:
        rows = kept(lambda chunk: even_logits(chunk, 65_536), 1.0)
        data = encode_frame(HEADER, pack_sparse(rows, values=values))
        figures[f"even V = 65,536: k = 64, {values}, bytes/entry"] = len(data) / rows.n_entries
    for k in (32, 64, 128):
        rows = kept(lambda chunk: even_logits(chunk, 151_936), 1.0, top_k=k, positions=1000)
        data = encode_frame(HEADER, pack_sparse(rows, values="u8"))
        figures[f"even V = 151,936: k = {k}, u8, bytes/position"] = len(data) / rows.n_rows
    for name, value in figures.items():
        print(f"{name:78s} {value:12.4g}")
    for values, target in TARGETS.items():
        worst = max(
            value for name, value in figures.items() if name.endswith(f"k = 64, {values}, bytes/entry")
        )
        print(
            f"{values}: worst {worst:.2f} bytes per entry, target {target}: {'met' if worst <= target else 'MISSED'}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure(chunks: Chunks) -> dict[str, float]:
    figures: dict[str, float] = {}
    fixed, adaptive = kept(chunks, 1.0), kept(chunks, MASS)
    figures["k = 64, pickled lists, bytes/entry"] = len(pickled(fixed)) / fixed.n_entries
    figures["k = 64, safetensors f32 + i32, bytes/entry"] = len(plain(fixed)) / fixed.n_entries
    for values in TARGETS:
        data, seconds = timed(lambda v=values: encode_frame(HEADER, pack_sparse(fixed, values=v)))
        rows, seconds_back = timed(lambda v=values, d=data: unpack_sparse(decode_frame(d)[1], values=v))
        figures[f"k = 64, {values}, bytes/entry"] = len(data) / fixed.n_entries
        figures[f"k = 64, {values}, million entries/s encoded"] = fixed.n_entries / seconds / 1e6
        figures[f"k = 64, {values}, million entries/s decoded"] = fixed.n_entries / seconds_back / 1e6
        loss, gradient = kd_error(chunks, fixed, rows)
        figures[f"k = 64, {values}, KD-loss error"] = loss
        figures[f"k = 64, {values}, KD-gradient error"] = gradient
    figures["adaptive, entries/position"] = adaptive.n_entries / adaptive.n_rows
    figures["adaptive, kept mass"] = float(adaptive.kept_mass().mean())
    figures["adaptive, pickled lists, bytes/position"] = len(pickled(adaptive)) / adaptive.n_rows
    figures["adaptive, safetensors f32 + i32, bytes/position"] = len(plain(adaptive)) / adaptive.n_rows
    for values in TARGETS:
        data = encode_frame(HEADER, pack_sparse(adaptive, values=values))
        rows = unpack_sparse(decode_frame(data)[1], values=values)
        figures[f"adaptive, {values}, bytes/position"] = len(data) / adaptive.n_rows
        figures[f"adaptive, {values}, KD-loss error"] = kd_error(chunks, adaptive, rows)[0]
    return figures


# -- logits -------------------------------------------------------------------------------------------------------


def zipf_logits(chunk: int) -> torch.Tensor:
    vocab_size = 50_257
    draw = torch.Generator().manual_seed(chunk)
    logits = -torch.log(torch.arange(vocab_size) + 2.7).repeat(
        CHUNK, 1
    )  # ids in the order of their frequency
    logits += 1.5 * torch.randn(CHUNK, vocab_size, generator=draw)
    fitting = (torch.rand(CHUNK, 30, generator=draw).pow(3) * vocab_size).long()  # frequent ones more often
    sure = torch.rand(CHUNK, 1, generator=draw) < 0.5
    height = torch.rand(CHUNK, 30, generator=draw) * torch.where(sure, 14.0, 9.0)
    return logits.scatter_add_(1, fitting, height)


def even_logits(chunk: int, vocab_size: int) -> torch.Tensor:
    return 3 * torch.randn(CHUNK, vocab_size, generator=torch.Generator().manual_seed(chunk))


def real_logits(shared: Path) -> Chunks:
    import gzip

    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = shared / "models/stories260k"
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids: list[int] = []
    with gzip.open(shared / "data/english_novels/validation.jsonl.gz", "rt", encoding="utf-8") as lines:
        while len(ids) < POSITIONS + 1:
            ids += tokenizer(json.loads(next(lines))["text"][:20_000], add_special_tokens=False)["input_ids"]

    def chunk_of(chunk: int) -> torch.Tensor:
        with torch.inference_mode():
            row = torch.tensor([ids[chunk * CHUNK : (chunk + 1) * CHUNK]])
            return model(input_ids=row).logits[0].float().clone()

    return chunk_of


def kept(chunks: Chunks, mass: float, *, top_k: int = TOP_K, positions: int = POSITIONS) -> SparseLogits:
    """All positions of a source, cut to `top_k` entries at most."""
    parts = [sparsify(chunks(chunk), top_k, mass) for chunk in range(positions // CHUNK)]
    ids, log_probs, counts, tail = (np.concatenate(column) for column in zip(*parts, strict=True))
    ends = np.tile(np.arange(PER_SAMPLE, dtype=np.int32) * 4, positions // PER_SAMPLE)
    samples = np.full(positions // PER_SAMPLE, PER_SAMPLE)
    return SparseLogits(
        token_ids=ids,
        log_probs=log_probs,
        row_splits=splits_of(counts),
        tail_log_prob=tail,
        end_byte=ends,
        segment=np.ones(positions, np.uint8),
        sample_splits=splits_of(samples),
    )


# -- plain ways to send them --------------------------------------------------------------------------------------


def pickled(rows: SparseLogits) -> bytes:
    splits = rows.row_splits.tolist()
    values, ids = rows.log_probs.tolist(), rows.token_ids.tolist()
    samples = []
    for sample in range(rows.n_samples):
        cuts = range(int(rows.sample_splits[sample]), int(rows.sample_splits[sample + 1]))
        samples.append(
            {
                "per_step_logits": [values[splits[i] : splits[i + 1]] for i in cuts],
                "per_step_indices": [ids[splits[i] : splits[i + 1]] for i in cuts],
            }
        )
    return pickle.dumps(samples)


def plain(rows: SparseLogits) -> bytes:
    return safetensors.numpy.save(
        {
            "ids": rows.token_ids,
            "values": rows.log_probs,
            "row_splits": rows.row_splits.astype(np.int32),
            "tail": rows.tail_log_prob,
        }
    )


# -- errors and seconds -------------------------------------------------------------------------------------------


def kd_error(chunks: Chunks, before: SparseLogits, after: SparseLogits) -> tuple[float, float]:
    """Relative error of the mean loss, and relative distance of its gradient."""
    losses = np.zeros(2)
    apart = length = 0.0
    for chunk in range(KD_CHUNKS):
        noise = torch.Generator().manual_seed(10_000 + chunk)
        teacher = chunks(chunk)
        student = 0.8 * teacher + torch.randn(teacher.shape, generator=noise)
        here = np.arange(chunk * CHUNK, (chunk + 1) * CHUNK)
        gradients = []
        for which, rows in enumerate((before, after)):
            taught = np.ones(CHUNK, bool)
            targets = SparseTargets.from_sparse(rows.take_rows(here), taught, torch.device("cpu"))
            logits = student.clone().requires_grad_(True)
            loss = sparse_kd_loss(logits, targets)
            (gradient,) = torch.autograd.grad(loss, logits)
            losses[which] += float(loss.detach())
            gradients.append(gradient)
        apart += float((gradients[1] - gradients[0]).square().sum())
        length += float(gradients[0].square().sum())
    return float(abs(losses[1] - losses[0]) / losses[0]), (apart / length) ** 0.5


def timed(run: Callable[[], Result]) -> tuple[Result, float]:
    """What a call returns, and the CPU seconds of the best of three calls."""
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        result = run()
        best = min(best, time.process_time() - start)
    return result, best


if __name__ == "__main__":
    main()
