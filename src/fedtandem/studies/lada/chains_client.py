"""A client of the chains playground that masters short chains of three signs, made anew for every seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from fedtandem.algorithms.learner import TestSet
from fedtandem.data.chains import ChainsSource
from fedtandem.data.public import Sample
from fedtandem.models.language_model import LanguageModel
from fedtandem.models.load import ModelSpec, load_model
from fedtandem.models.scratch import ScratchSpec, cached_scratch
from fedtandem.studies.lada.mixed_pool import CLIENT_SIGNS

OLD, NEW = "old skill", "new skill"
STEPS = (1, 2)


@dataclass(frozen=True)
class Making:
    """How a client is made."""

    hidden_size: int = 48
    updates: int = 1300
    rows: int = 20_000
    tokenizer: str = "bpe"


@lru_cache(maxsize=2)
def make_client(making: Making, seed: int) -> LanguageModel:
    """Llama, two layers; trained on 1-2 steps of + - *; its tokenizer can write every sign. From the cache if there."""
    rows = [(s.prompt, s.answer or "") for s in _chains(making.rows, seed, 0, "train")]
    every = ChainsSource(n=3000, must_contain=("@", "&"), table_seed=seed).samples()
    spec = ScratchSpec(
        "llama", making.hidden_size, 2, making.hidden_size // 16, tokenizer=making.tokenizer,  # type: ignore[arg-type]
        vocab_size=512, updates=making.updates, learning_rate=4e-3, seed=seed,
    )  # fmt: skip
    made = cached_scratch(spec, rows, tokenizer_texts=[s.prompt + (s.answer or "") for s in every])
    return load_model(ModelSpec(model=str(made.folder), tuning_method="full", device="cpu"))


def own_data(n: int, seed: int) -> list[Sample]:
    """What the client replays."""
    return _chains(n, seed, 1, "train")


def tests(n: int, seed: int) -> list[TestSet]:
    """What it masters at first, and the same lengths with the sign that only the server knows."""
    return [
        TestSet(OLD, "exact_match", _chains(n, seed, 2, "test")),
        TestSet(NEW, "exact_match", _chains(n, seed, 3, "test", ("m",))),
    ]


def _chains(n: int, seed: int, which: int, part: str, must: Sequence[str] = ()) -> list[Sample]:
    return ChainsSource(
        n=n, operators=CLIENT_SIGNS, must_contain=tuple(must), steps=STEPS, seed=1_000_000 + 10 * seed + which,
        part=part,  # type: ignore[arg-type]
    ).samples()  # fmt: skip


def server() -> LanguageModel:
    """The shipped server, which masters + - * m up to four steps."""
    return load_model(ModelSpec(model="embedded:chains-server", tuning_method="none", device="cpu"))
