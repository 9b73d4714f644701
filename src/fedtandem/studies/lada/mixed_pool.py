"""The mixed pool: prompts of which some are known, some can be learnt, and some are taught wrongly.

The server writes a path for each, once, for all selectors of a seed. Right paths are looked at for the tables and for
the ceiling alone.

Source: specification of studies, sections 2 and 7; specification of LaDa, section 10.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedtandem.algorithms.sequence_scores import sequence_log_probs
from fedtandem.data.chains import ChainsSource
from fedtandem.data.public import Sample
from fedtandem.models.language_model import LanguageModel
from fedtandem.selection.items import Floats, Ids

KNOWN, LEARNABLE, FOREIGN, TOO_LONG = "known", "learnable", "foreign sign", "too long"
"""1-2 steps of signs both know; 1-2 steps with a sign that the server knows and the client never saw; the same with one
the server never saw either; 5 steps, too many for both: the server is wrong on the last two, and sure of many."""
SHARES: Mapping[str, float] = {KNOWN: 0.46, LEARNABLE: 0.2, FOREIGN: 0.1, TOO_LONG: 0.24}
_STEPS: Mapping[str, tuple[int, ...]] = {KNOWN: (1, 2), LEARNABLE: (1, 2), FOREIGN: (1, 2), TOO_LONG: (5,)}
_SIGNS: Mapping[str, tuple[str, ...]] = {KNOWN: (), LEARNABLE: ("m",), FOREIGN: ("@",), TOO_LONG: ()}
CLIENT_SIGNS = ("+", "-", "*")
PATH_TOKENS = 64
"""Longer than the longest path."""


@dataclass(frozen=True, eq=False)
class MixedPool:
    """N prompts with what the server wrote.

    Attributes:
        samples: prompts; right paths stand in the field "gold".
        strata: the stratum of each.
        paths: the server's greedy path of each.
        log_probs: of each under the server, nats; (N,) float64.
        is_right: the path is the right one; (N,) bool.
        probe: items that are measured and never learnt; ascending.
    """

    samples: Sequence[Sample]
    strata: Sequence[str]
    paths: Sequence[str]
    log_probs: Floats
    is_right: np.ndarray
    probe: Ids


def mixed_prompts(n: int, seed: int) -> tuple[list[Sample], list[str]]:
    """n prompts in random order, none twice, and the stratum of each; no answers."""
    samples, strata = [], []
    for i, (stratum, share) in enumerate(SHARES.items()):
        wanted = round(share * n)
        drawn = ChainsSource(
            n=4 * wanted, operators=CLIENT_SIGNS, must_contain=_SIGNS[stratum], steps=_STEPS[stratum],
            seed=10_000 * seed + i, table_seed=seed, part="train", labelled=False,
        ).samples()  # fmt: skip
        once = list({sample.prompt: sample for sample in drawn}.values())[:wanted]
        samples += once
        strata += [stratum] * len(once)
    order = np.random.default_rng([seed, 1]).permutation(len(samples))
    named = [replace(samples[i], id=f"item-{at:05d}") for at, i in enumerate(order)]
    return named, [strata[i] for i in order]


def write_paths(lm: LanguageModel, samples: Sequence[Sample]) -> tuple[list[str], Floats]:
    """The model's greedy path of each prompt and its log-probability in nats, (n,); -inf for an empty path."""
    tokenizer = lm.tokenizer
    written = lm.generate(
        [tokenizer.encode_prompt(sample.prompt) for sample in samples],
        max_new_tokens=PATH_TOKENS,
        batch_size=256,
    )
    paths = [tokenizer.decode_answer(ids) for ids in written]
    encoded = tokenizer.encode_many([(s.prompt, path) for s, path in zip(samples, paths, strict=True)])
    log_probs = sequence_log_probs(lm, encoded, 128)
    return paths, np.where([bool(path) for path in paths], log_probs, -np.inf)


def make_pool(server: LanguageModel, n: int, seed: int, probe_share: float = 0.1) -> MixedPool:
    """The pool of one seed, with the server's paths."""
    samples, strata = mixed_prompts(n, seed)
    paths, log_probs = write_paths(server, samples)
    gold = [sample.fields["gold"] for sample in samples]
    drawn = np.random.default_rng([seed, 2]).permutation(len(samples))[: round(probe_share * len(samples))]
    is_right = np.array([path == right for path, right in zip(paths, gold, strict=True)])
    return MixedPool(samples, strata, paths, log_probs, is_right, np.sort(drawn).astype(np.int64))
