"""A training step with LoRA and sparse distillation against the same step in plain transformers + PEFT, on a GPU.

    python benchmarks/gpu.py [--json] [--shapes server client]        prints "no GPU here: not run" without one
    python benchmarks/gpu.py --tiny --device cpu                      a smoke test of this program; figures mean nothing

Random weights, bf16, LoRA r 8 on q, k, v, o. One update takes 4 texts of 512 tokens with answers of 64.
    plain    model(input_ids, attention_mask, labels).loss, backward, clip, AdamW
    ours     `train_phase`: batches are padded, targets (k 64) unpacked and moved, labels and teacher compared, clipped,
             AdamW; logits at the answer positions only, no dense target
    peak     most memory allocated on the device during the steps, minus the loaded model
    pass     the public pass: logits at the answer positions and their top 64, in tokens of text per second
The first three updates of either arm are not counted. Targets: ours >= 0.9 x plain in updates
per second, peak <= 1.1 x.
"""

import argparse
import gc
import json
import statistics
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from fedtandem.knowledge.sparse_logits import SparseLogits, sparsify
from fedtandem.models.encoded import Encoded
from fedtandem.models.language_model import LanguageModel, collate
from fedtandem.tuning.phase import Example, PhaseSettings, train_phase

SPEED_TARGET, PEAK_TARGET = 0.9, 1.1
BATCH, KEPT, WARM_UP = 4, 64, 3


@dataclass(frozen=True)
class Shape:
    """A Llama's size, and the texts it is fed."""

    hidden: int
    inner: int
    layers: int
    heads: int
    vocabulary: int
    tokens: int
    answer: int


SHAPES = {
    "server": Shape(4096, 11008, 32, 32, 32_000, 512, 64),  # Llama-2 7B
    "client": Shape(2048, 5504, 24, 16, 32_000, 512, 64),  # Sheared-LLaMA 1.3B
}
TINY = {
    "server": Shape(64, 128, 2, 4, 500, 32, 8),
    "client": Shape(32, 64, 1, 2, 300, 32, 8),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--steps", type=int, default=13)
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to try this program itself")
    parser.add_argument("--device", help='"cuda", "mps" or "cpu"; default: the GPU of this machine')
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    device = torch.device(args.device) if args.device else torch.accelerator.current_accelerator()
    if device is None:
        print("no GPU here: not run")
        return 0
    results = []
    for name in args.shapes:
        result = measure(name, (TINY if args.tiny else SHAPES)[name], device, max(args.steps, WARM_UP + 1))
        results.append(result)
        if not args.json:
            print(describe(result), flush=True)
    if args.json:
        print(
            json.dumps(
                {"device": device_name(device), "torch": torch.__version__, "results": results}, indent=2
            )
        )
    return 0 if args.tiny or all(result["passed"] for result in results) else 1


def measure(name: str, shape: Shape, device: torch.device, steps: int) -> dict[str, Any]:
    """Both arms and the public pass on one shape; each arm starts from a model of its own."""
    plain_s, plain_peak = plain_arm(shape, device, steps)
    ours_s, ours_peak = our_arm(shape, device, steps)
    speed = plain_s / ours_s
    peak = ours_peak / plain_peak if ours_peak is not None and plain_peak else None
    return {
        "shape": name,
        "device": device_name(device),
        "plain": {"step_s": plain_s, "peak_bytes": plain_peak},
        "ours": {"step_s": ours_s, "peak_bytes": ours_peak},
        "speed_ratio": speed,
        "peak_ratio": peak,
        "pass_tokens_per_s": public_pass(shape, device),
        "passed": speed >= SPEED_TARGET and (peak is None or peak <= PEAK_TARGET),
    }


def describe(result: dict[str, Any]) -> str:
    """One line of figures."""
    plain, ours = result["plain"], result["ours"]
    peak = "peak not measured"
    if result["peak_ratio"] is not None:
        peak = (
            f"peak {plain['peak_bytes'] / 2**30:.2f} -> {ours['peak_bytes'] / 2**30:.2f} GiB "
            f"({result['peak_ratio']:.2f}x, limit {PEAK_TARGET})"
        )
    return (
        f"{result['shape']:<7} {result['device']}   step {plain['step_s'] * 1e3:.0f} -> {ours['step_s'] * 1e3:.0f} ms "
        f"({result['speed_ratio']:.2f}x the speed, target {SPEED_TARGET})   {peak}   "
        f"public pass {result['pass_tokens_per_s']:,.0f} tokens/s   {'ok' if result['passed'] else 'MISSED'}"
    )


def plain_arm(shape: Shape, device: torch.device, steps: int) -> tuple[float, int | None]:
    """Seconds of an update in plain transformers + PEFT, and its peak memory."""
    model = lora_model(shape, device)
    texts = [example.encoded for example in examples_of(shape, BATCH)]
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4)
    model.train()

    def step() -> None:
        batch = collate(texts, 0)
        labels = torch.full_like(batch.input_ids, -100)
        labels[batch.row, batch.col + 1] = batch.targets
        optimizer.zero_grad(set_to_none=True)
        output = model(
            input_ids=batch.input_ids.to(device),
            attention_mask=batch.attention_mask.to(device),
            labels=labels.to(device),
        )
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()

    clock = Clock(device)
    for _ in range(steps):
        step()
        clock.tick()
    return clock.result()


def our_arm(shape: Shape, device: torch.device, steps: int) -> tuple[float, int | None]:
    """Seconds of an update of `train_phase`, and its peak memory."""
    lm = language_model(shape, device)
    settings = PhaseSettings(learning_rate=1e-4, max_steps=steps, batch_size=BATCH)
    examples = examples_of(shape, BATCH)
    clock = Clock(device)
    train_phase(lm, examples, settings, on_step=lambda *_: clock.tick(), gradient_share_every=0)
    return clock.result()


def public_pass(shape: Shape, device: torch.device, batches: int = 8) -> float:
    """Tokens of text per second through the model and the top-k cut."""
    lm = language_model(shape, device)
    texts = [example.encoded for example in examples_of(shape, 2 * BATCH)]

    def one_batch() -> None:
        with torch.inference_mode():
            sparsify(lm.logits_at(collate(texts, 0)), KEPT, 0.99)

    one_batch()
    synchronize(device)
    started = time.perf_counter()
    for _ in range(batches):
        one_batch()
    synchronize(device)
    return batches * len(texts) * shape.tokens / (time.perf_counter() - started)


class Clock:
    """Times between ticks, and the device's peak memory from its making on."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        self.loaded = 0
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self.loaded = torch.cuda.memory_allocated(device)
        synchronize(device)
        self.times = [time.perf_counter()]

    def tick(self) -> None:
        """An update is done."""
        synchronize(self.device)
        self.times.append(time.perf_counter())

    def result(self) -> tuple[float, int | None]:
        """Median seconds between ticks after the warm-up, and peak bytes above the loaded model (CUDA only)."""
        seconds = [after - before for before, after in zip(self.times, self.times[1:], strict=False)]
        peak = (
            torch.cuda.max_memory_allocated(self.device) - self.loaded if self.device.type == "cuda" else None
        )
        return statistics.median(seconds[WARM_UP:]), peak


def lora_model(shape: Shape, device: torch.device) -> Any:
    """A random Llama with a LoRA adapter, in bf16 where the device is an accelerator."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.tokens,
    )
    torch.manual_seed(0)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if device.type == "cpu" else torch.bfloat16)
    try:
        with device:
            base = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(usual)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    return get_peft_model(
        base, LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=targets, task_type="CAUSAL_LM")
    )


def language_model(shape: Shape, device: torch.device) -> LanguageModel:
    """The same model as this package wraps it; nothing here ever needs the tokenizer's text side."""
    tokenizer: Any = SimpleNamespace(vocab_size=shape.vocabulary, pad_id=0, eos_id=2)
    return LanguageModel(lora_model(shape, device), tokenizer, name="random", method="lora")


def examples_of(shape: Shape, count: int) -> list[Example]:
    """Random texts of one length, a teacher's 64 best tokens at every answer position."""
    generator = np.random.default_rng(0)
    return [random_example(shape, generator) for _ in range(count)]


def random_example(shape: Shape, generator: np.random.Generator) -> Example:
    n = shape.answer
    encoded = Encoded(
        input_ids=generator.integers(3, shape.vocabulary, shape.tokens).astype(np.int32),
        positions=np.arange(shape.tokens - n - 1, shape.tokens - 1, dtype=np.int32),
        end_byte=np.arange(n, dtype=np.int32),
        segment=np.ones(n, np.uint8),
        n_answer_bytes=n,
        scored=True,
        is_eos=np.zeros(n, np.bool_),
    )
    ids = np.sort(
        np.stack([generator.choice(shape.vocabulary, KEPT, replace=False) for _ in range(n)]), axis=1
    )
    p = generator.exponential(size=(n, KEPT)) ** 3
    log_probs = np.log(0.9 * p / p.sum(axis=1, keepdims=True))
    rows = SparseLogits(
        token_ids=ids.reshape(-1).astype(np.int32),
        log_probs=log_probs.reshape(-1).astype(np.float32),
        row_splits=np.arange(n + 1) * KEPT,
        tail_log_prob=np.full(n, np.log(0.1), np.float32),
        end_byte=encoded.end_byte,
        segment=encoded.segment,
        sample_splits=np.array([0, n]),
    )
    return Example(encoded, rows)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def device_name(device: torch.device) -> str:
    """What it is, for the record."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


if __name__ == "__main__":
    raise SystemExit(main())
