"""What distillation adds to a training step, in memory and in CPU time.

    python benchmarks/kd_step.py [--json]

One step is forward and backward (no optimiser, which would only dilute the ratio) of a Llama shape with d 256,
4 layers and V 50,257, on B 4 x T 256 tokens with answers of 64, float32, one thread. Both arms compute logits at the
256 answer positions only. `plain` is `F.cross_entropy` on the labels; `kd` is the same labels and a teacher's 64
best tokens per position, unpacked from ragged numpy rows inside the step.
    peak   the process's largest resident memory during the steps, minus that after loading the model
    cpu    process time of a step, the median of all steps after the first two
Every arm runs in fresh processes, in turns; the median of `--repeats` counts.
Targets: peak <= 1.1 x plain, CPU <= 1.15 x plain, at temperature 1 and 3, with all weights trained and with LoRA's
share of the work (frozen base: no weight gradient of the head).
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PEAK_LIMIT, CPU_LIMIT = 1.10, 1.15
BATCH, TOKENS, ANSWER, VOCABULARY, KEPT = 4, 256, 64, 50_257, 64


def memory_bytes(field: str) -> int:
    """VmRSS (now) or VmHWM (the most since the last reset), in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def measure(arm: str, temperature: float, weights: str, steps: int) -> dict[str, float]:
    """Run one arm in this process: peak bytes above the loaded model, CPU seconds per step."""
    step = build_step(arm, temperature, weights)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    loaded = memory_bytes("VmRSS")
    seconds = []
    for _ in range(steps):
        started = time.process_time()
        step()
        seconds.append(time.process_time() - started)
    return {"peak_bytes": memory_bytes("VmHWM") - loaded, "cpu_s": statistics.median(seconds[2:])}


def build_step(arm: str, temperature: float, weights: str) -> Callable[[], None]:
    """The model, its batch and its teacher, and one step over them."""
    import numpy as np
    import torch
    import torch.nn.functional as F
    from transformers import LlamaConfig, LlamaForCausalLM

    from fedtandem.distillation.kd import SparseTargets, combined_loss
    from fedtandem.knowledge.sparse_logits import SparseLogits

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=TOKENS,
    )
    model = LlamaForCausalLM(config)
    if weights == "adapter":
        model.requires_grad_(False)
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.requires_grad_(True)
            layer.self_attn.v_proj.weight.requires_grad_(True)
    ids = torch.randint(VOCABULARY, (BATCH, TOKENS))
    col = torch.arange(TOKENS - ANSWER - 1, TOKENS - 1)
    labels = ids[:, col + 1].reshape(-1)
    rows = teacher_rows(np.random.default_rng(0), SparseLogits)
    taught = np.ones(rows.n_rows, np.bool_)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        hidden = (
            model.model(input_ids=ids, use_cache=False).last_hidden_state[:, col].reshape(BATCH * ANSWER, -1)
        )
        if arm == "plain":
            loss = F.cross_entropy(model.lm_head(hidden), labels)
        else:
            targets = SparseTargets.from_sparse(rows, taught, torch.device("cpu"))
            loss = combined_loss(
                model.lm_head(hidden), labels, targets, hard_weight=0.1, temperature=temperature
            ).total
        loss.backward()  # type: ignore[no-untyped-call]

    return step


def teacher_rows(generator: Any, sparse_logits: Any) -> Any:
    """64 random ids and falling probabilities per answer position, 0.9 of the mass kept."""
    import numpy as np

    n = BATCH * ANSWER
    ids = np.sort(np.stack([generator.choice(VOCABULARY, KEPT, replace=False) for _ in range(n)]), axis=1)
    p = generator.exponential(size=(n, KEPT)) ** 3
    log_probs = np.log(0.9 * p / p.sum(axis=1, keepdims=True))
    return sparse_logits(
        token_ids=ids.reshape(-1).astype(np.int32),
        log_probs=log_probs.reshape(-1).astype(np.float32),
        row_splits=np.arange(n + 1) * KEPT,
        tail_log_prob=np.full(n, np.log(0.1), np.float32),
        end_byte=np.zeros(n, np.int32),
        segment=np.ones(n, np.uint8),
        sample_splits=np.arange(BATCH + 1) * ANSWER,
    )


def fresh(arm: str, temperature: float, weights: str, steps: int) -> dict[str, float]:
    """The same in a new process."""
    words = [sys.executable, __file__, "--arm", arm, "--temperature", str(temperature), "--weights", weights]
    done = subprocess.run([*words, "--steps", str(steps)], check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(weights: str, temperature: float, repeats: int, steps: int) -> dict[str, object]:
    """Both arms in turns, `repeats` times, and their ratios."""
    runs: dict[str, list[dict[str, float]]] = {"plain": [], "kd": []}
    for _ in range(repeats):
        for arm, results in runs.items():
            results.append(fresh(arm, temperature, weights, steps))
    middle = {
        arm: {key: statistics.median(run[key] for run in results) for key in results[0]}
        for arm, results in runs.items()
    }
    peak = middle["kd"]["peak_bytes"] / middle["plain"]["peak_bytes"]
    cpu = middle["kd"]["cpu_s"] / middle["plain"]["cpu_s"]
    return {
        "weights": weights,
        "temperature": temperature,
        **middle,
        "peak_ratio": peak,
        "cpu_ratio": cpu,
        "passed": peak <= PEAK_LIMIT and cpu <= CPU_LIMIT,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--json", action="store_true", help="print one JSON list instead of lines")
    parser.add_argument("--arm", choices=["plain", "kd"], help=argparse.SUPPRESS)
    parser.add_argument("--temperature", type=float, default=1.0, help=argparse.SUPPRESS)
    parser.add_argument("--weights", choices=["full", "adapter"], default="full", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        print(json.dumps(measure(args.arm, args.temperature, args.weights, args.steps)))
        return 0
    results = []
    for weights in ("full", "adapter"):
        for temperature in (1.0, 3.0):
            result = compare(weights, temperature, args.repeats, args.steps)
            results.append(result)
            if not args.json:
                plain, kd = result["plain"], result["kd"]
                assert isinstance(plain, dict)
                assert isinstance(kd, dict)
                print(
                    f"weights {weights:<8} temperature {temperature:g}   "
                    f"peak {plain['peak_bytes'] / 2**20:.0f} -> {kd['peak_bytes'] / 2**20:.0f} MiB "
                    f"({result['peak_ratio']:.2f}x, limit {PEAK_LIMIT})   "
                    f"cpu {plain['cpu_s'] * 1e3:.0f} -> {kd['cpu_s'] * 1e3:.0f} ms "
                    f"({result['cpu_ratio']:.2f}x, limit {CPU_LIMIT})   {'ok' if result['passed'] else 'MISSED'}",
                    flush=True,
                )
    if args.json:
        print(json.dumps(results, indent=2))
    return 0 if all(result["passed"] for result in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
