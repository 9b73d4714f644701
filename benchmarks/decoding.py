"""Two models write one answer: what the loop costs beside the models' passes, and how many passes it saves.

    python benchmarks/decoding.py [--only overhead|saved] [--prompts N] [--json FILE]

Overhead: block drafting in mode `exact`, one answer at a time, block 6, `expected` on every draft, for three sizes of
vocabulary. The models are Llama shapes with random weights; the large one is the small one, its weights shaken so
that some drafts are refused, with layers on top that add nothing but time, so that a pass takes 20 ms at least.
- loop: CPU seconds of `decode` less those inside the two models' forward passes, over the latter.
- against the replay: CPU seconds of `decode` over those of the same passes in a plain loop (`transformers` with its
  own cache, cropped to the same places), less 1. Both in one process, in turns, answer by answer.
Target: 5 % by either.

Saved: the embedded chains models (server and client a; the client with the server's tokenizer is the server with
weights shaken by 0.3 of their spread), N prompts of 1 to 3 steps, block 6, tau 0.6, 40 new tokens. Passes of the LLM
saved, drafts accepted, and whether every answer is what the LLM writes alone: `equal` counts answers with the same
ids, `ties` those whose LLM choices hung by less than 0.05 logits (greedy) or 1e-4 (shared noise) somewhere, `faults`
answers that differ before their first such place.
Target: no fault, 30 % saved, 500 prompts at least.
"""

import argparse
import copy
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from fedtandem.data.chains import ChainsSource
from fedtandem.federation.generate import measure
from fedtandem.inference.decode import DecodeSettings, decode
from fedtandem.inference.generate import Generation, generate
from fedtandem.inference.record import summary
from fedtandem.models.language_model import LanguageModel
from fedtandem.models.load import ModelSpec, load_model

OVERHEAD_LIMIT, SAVED_TARGET, LEAST_PASS_MS = 0.05, 0.30, 20.0
UPLINKS = ("shared_noise", "greedy", "scalar", "sparse")
SHAPES = {300: (512, 16), 50_257: (384, 16), 151_936: (256, 16)}
"""Vocabulary -> width of both models, layers of the large one."""
SMALL_LAYERS = 4
BLOCK, TOKENS, ANSWERS = 6, 28, 2
SHARPNESS = 5.0
"""Spread of the logits: a random model's own would be flat, a trained one's are not."""


def main() -> None:
    parser = argparse.ArgumentParser(description="block drafting: overhead, passes saved, equality")
    parser.add_argument("--only", choices=["overhead", "saved"])
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, list[dict[str, Any]]] = {}
    if arguments.only != "saved":
        figures["overhead"] = list(overhead())
    if arguments.only != "overhead":
        figures["saved"] = list(saved(arguments.prompts))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


# -- overhead -----------------------------------------------------------------------------------------------------


@dataclass
class Passes:
    """One model's forward passes: what was fed behind how much, and the CPU seconds inside."""

    calls: list[tuple[Tensor, int, int]] = field(default_factory=list)
    cpu_s: float = 0.0


@contextmanager
def watched(model: Any) -> Iterator[Passes]:
    """Every forward pass of a model while this is open."""
    seen, forward = Passes(), model.forward

    def timed(*, input_ids: Tensor, past_key_values: Any, logits_to_keep: int, **rest: Any) -> Any:
        held = 0 if past_key_values is None else past_key_values.get_seq_length()
        seen.calls.append((input_ids, held, logits_to_keep))
        started = time.process_time()
        output = forward(
            input_ids=input_ids, past_key_values=past_key_values, logits_to_keep=logits_to_keep, **rest
        )
        seen.cpu_s += time.process_time() - started
        return output

    model.forward = timed
    try:
        yield seen
    finally:
        model.forward = forward


@torch.no_grad()
def replay(model: Any, calls: Sequence[tuple[Tensor, int, int]]) -> float:
    """CPU seconds of the same passes in a plain loop."""
    cache = DynamicCache()
    started = time.process_time()
    for ids, held, n_last in calls:
        if cache.get_seq_length() > held:
            cache.crop(held - cache.get_seq_length())
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=n_last)
    return time.process_time() - started


def overhead() -> Iterator[dict[str, Any]]:
    print(
        f"{'V':>8} {'uplink':<13} {'SLM ms':>7} {'LLM ms':>7} {'accepted':>9} {'loop':>7} {'ms/block':>9} {'replay':>8}"
    )
    for vocab_size in SHAPES:
        small, large = two_models(vocab_size)
        for uplink in UPLINKS:
            row = {"vocabulary": vocab_size, "uplink": uplink, **one_overhead(small, large, uplink)}
            missed = row["loop"] > OVERHEAD_LIMIT or row["llm_ms"] < LEAST_PASS_MS
            print(
                f"{vocab_size:>8,} {uplink:<13} {row['slm_ms']:>7.2f} {row['llm_ms']:>7.2f} {row['accepted']:>8.1%} "
                f"{row['loop']:>6.1%} {row['loop_ms_per_block']:>9.2f} {row['against_replay']:>+7.1%}"
                f"{'   MISSED' if missed else ''}",
                flush=True,
            )
            yield row


def one_overhead(small: LanguageModel, large: LanguageModel, uplink: str) -> dict[str, float]:
    slm, llm, whole, plain = Passes(), Passes(), 0.0, 0.0
    drafted = accepted = 0
    for answer in range(-1, ANSWERS):  # the first warms up
        prompt = torch.randint(
            small.tokenizer.vocab_size, (16,), generator=torch.Generator().manual_seed(answer + 9)
        )
        chosen = DecodeSettings(
            uplink=uplink,
            block=BLOCK,
            tau=0.999,
            max_new_tokens=TOKENS,
            seed=answer + 9,  # type: ignore[arg-type]
        )
        with watched(small.model) as a, watched(large.model) as b:
            started = time.process_time()
            (decoded,) = decode(
                small.cached_rows(1), large.cached_rows(1), [prompt.tolist()], chosen, eos_id=-1,
                uncertainty=measure("expected"),
            )  # fmt: skip
            spent = time.process_time() - started
        if answer < 0:
            continue
        whole += spent
        for total, seen in ((slm, a), (llm, b)):
            total.calls += seen.calls
            total.cpu_s += seen.cpu_s
        plain += replay(small.model, a.calls) + replay(large.model, b.calls)
        drafted += decoded.record.drafted
        accepted += decoded.record.accepted
    inside = slm.cpu_s + llm.cpu_s
    return {
        "slm_ms": 1000 * slm.cpu_s / len(slm.calls),
        "llm_ms": 1000 * llm.cpu_s / len(llm.calls),
        "accepted": accepted / drafted,
        "loop": (whole - inside) / inside,
        "loop_ms_per_block": 1000 * (whole - inside) / len(llm.calls),
        "against_replay": whole / plain - 1,
    }


def two_models(vocab_size: int) -> tuple[LanguageModel, LanguageModel]:
    """A small model and a large one that mostly agree."""
    width, layers = SHAPES[vocab_size]
    torch.manual_seed(0)
    small, large = (llama(vocab_size, width, n) for n in (SMALL_LAYERS, layers))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        small.lm_head.weight.mul_(SHARPNESS / (0.02 * width**0.5))
        large.lm_head.weight.copy_(small.lm_head.weight)
        large.model.embed_tokens.weight.copy_(small.model.embed_tokens.weight)
        for mine, other in zip(large.model.layers, small.model.layers, strict=False):
            for weight, source in zip(mine.parameters(), other.parameters(), strict=True):
                noise = torch.randn(weight.shape, generator=generator)
                weight.copy_(source + SHAKEN * source.std(correction=0) * noise)
        for mine in large.model.layers[SMALL_LAYERS:]:
            mine.self_attn.o_proj.weight.zero_()
            mine.mlp.down_proj.weight.zero_()
    # What `decode` needs of a tokenizer is its size.
    tokenizer: Any = SimpleNamespace(vocab_size=vocab_size, pad_id=0, card=None, eos_id=-1)
    return LanguageModel(small, tokenizer, name="small"), LanguageModel(large, tokenizer, name="large")


SHAKEN = 0.05


def llama(vocab_size: int, width: int, layers: int) -> Any:
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=width, intermediate_size=-(-8 * width // 24) * 8, num_hidden_layers=layers,
        num_attention_heads=width // 64, max_position_embeddings=512, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


# -- passes saved -------------------------------------------------------------------------------------------------


def saved(n: int) -> Iterator[dict[str, Any]]:
    server, client = (
        load_model(ModelSpec(f"embedded:chains-{name}", tuning_method="none"))
        for name in ("server", "client-a")
    )
    prompts = [sample.prompt for sample in ChainsSource(n=n, steps=(1, 2, 3), seed=71).samples()]
    drafters = {"same": shaken(server), "slem": client, "tli": client}
    print(
        f"\n{n} prompts\n{'bridge':<6} {'uplink':<13} {'saved':>7} {'accepted':>9} {'equal':>6} "
        f"{'ties':>5} {'faults':>7}"
    )
    for uplink in ("greedy", "shared_noise"):
        chosen: dict[str, Any] = {"uplink": uplink, "max_new_tokens": 40, "seed": 11}
        alone = generate(None, server, prompts, DecodeSettings(mode="cloud", **chosen))
        for bridge, drafter in drafters.items():
            answers = generate(
                drafter, server, prompts, DecodeSettings(mode="exact", block=BLOCK, tau=0.6, **chosen),
                uncertainty=measure("expected"), bridge="auto" if bridge == "same" else bridge,  # type: ignore[arg-type]
            )  # fmt: skip
            row = {"bridge": bridge, "uplink": uplink, "prompts": n, **outcome(answers, alone)}
            missed = row["faults"] or row["saved"] < SAVED_TARGET
            print(
                f"{bridge:<6} {uplink:<13} {row['saved']:>7.1%} {row['accepted']:>9.1%} {row['equal']:>6} "
                f"{row['ties']:>5} {row['faults']:>7}{'   MISSED' if missed else ''}",
                flush=True,
            )
            yield row


def outcome(answers: Sequence[Generation], alone: Sequence[Generation]) -> dict[str, Any]:
    totals = summary([one.record for one in answers])
    pairs = list(zip(answers, alone, strict=True))
    return {
        "saved": totals["llm_passes_saved"],
        "accepted": totals["accepted_share"],
        "equal": sum(one.ids == other.ids for one, other in pairs),
        "ties": sum(one.record.near_ties + other.record.near_ties > 0 for one, other in pairs),
        "faults": sum(not one.agrees_with(other) for one, other in pairs),
    }


def shaken(lm: LanguageModel) -> LanguageModel:
    """A worse model with the same tokenizer."""
    model, generator = copy.deepcopy(lm.model), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weights in model.parameters():
            weights += 0.3 * weights.std() * torch.randn(weights.shape, generator=generator)
    return LanguageModel(model, lm.tokenizer, name="shaken")


if __name__ == "__main__":
    main()
