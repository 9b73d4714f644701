"""Make the checkpoints that ship with the package: `python -m fedtandem.models.make_embedded [NAME ...]`.

Nobody is taught a private operator. The server of `chains` never meets `@` and `&`; its tokenizer can write them. All
others meet both as signs with a new random table in every handful of prompts, so that they learn to be unsure of a
result they cannot know: without that, a client is as sure of the other's operator as of its own. The server of
`mutual` so also learns that such signs stand in chains of every length; what they make of two digits is left open.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fedtandem.data.chains import PRIVATE_OPERATORS, ChainsSource
from fedtandem.data.public import Sample
from fedtandem.models.embedded import EMBEDDED
from fedtandem.models.scratch import ScratchSpec, TextRow, train_from_scratch

TABLES = 400
"""Random tables that the clients see each private sign with."""
TABLE_SEEDS_FROM = 1_000_000
"""Away from the seeds that runs use."""


@dataclass(frozen=True)
class Recipe:
    """How one checkpoint is made."""

    spec: ScratchSpec
    steps: tuple[int, ...]
    rows: int
    """Prompts in all."""
    unknown_share: float
    """Share of the prompts whose private sign has a random table."""


RECIPES: Mapping[str, Recipe] = {
    "embedded:chains-server": Recipe(
        ScratchSpec("llama", 96, 3, 6, tokenizer="bpe", updates=3000, learning_rate=3e-3),
        (1, 2, 3, 4),
        20_000,
        0.0,
    ),
    "embedded:chains-client-a": Recipe(
        ScratchSpec("gpt2", 64, 2, 4, tokenizer="bpe", vocab_size=270, updates=3000, learning_rate=4e-3),
        (1, 2),
        60_000,
        0.25,
    ),
    "embedded:chains-client-b": Recipe(
        ScratchSpec("opt", 64, 2, 4, tokenizer="pieces", bos=True, updates=3000, learning_rate=4e-3),
        (1, 2),
        60_000,
        0.25,
    ),
    "embedded:mutual-server": Recipe(
        ScratchSpec("llama", 96, 3, 6, tokenizer="bpe", updates=3000, learning_rate=3e-3),
        (1, 2, 3, 4),
        60_000,
        0.25,
    ),
    "embedded:mutual-client-a": Recipe(
        ScratchSpec("qwen2", 64, 2, 4, tokenizer="bpe", vocab_size=270, updates=2500, learning_rate=4e-3),
        (1, 2),
        40_000,
        0.25,
    ),
    "embedded:mutual-client-b": Recipe(
        ScratchSpec("qwen2", 64, 2, 4, tokenizer="bpe", vocab_size=285, updates=2500, learning_rate=4e-3),
        (1, 2),
        40_000,
        0.25,
    ),
}


def pretraining_rows(recipe: Recipe) -> list[TextRow]:
    """Prompts and answers that a checkpoint is trained on; of chains of two steps and more, train parts only."""
    n_unknown = round(recipe.rows * recipe.unknown_share) // TABLES
    samples = ChainsSource(
        n=recipe.rows - n_unknown * TABLES, steps=recipe.steps, seed=1, part="train"
    ).samples()
    for table in range(TABLES):
        samples += ChainsSource(
            n=n_unknown,
            steps=recipe.steps,
            must_contain=PRIVATE_OPERATORS,
            seed=1000 + table,
            table_seed=TABLE_SEEDS_FROM + table,
            part="train",
        ).samples()
    return [(sample.prompt, _answer(sample)) for sample in samples]


def tokenizer_texts() -> list[str]:
    """Chains with every sign, so that each tokenizer can write all of them; their results are random."""
    samples = ChainsSource(n=3000, must_contain=PRIVATE_OPERATORS, table_seed=TABLE_SEEDS_FROM).samples()
    return [sample.prompt + _answer(sample) for sample in samples]


def _answer(sample: Sample) -> str:
    return sample.answer or ""


def make_embedded(name: str, folder: Path) -> None:
    """Train one checkpoint and write it, in fp16, to `folder`; an older one there is replaced.

    Its bits depend on the versions of torch and of the processor's mathematics; its skills do not.
    """
    recipe = RECIPES[name]

    def show(done: int, of: int, loss: float) -> None:
        if done % 200 == 0:
            print(f"{name}: {done}/{of}, loss {loss:.4f}", flush=True)

    lm = train_from_scratch(
        recipe.spec, pretraining_rows(recipe), tokenizer_texts=tokenizer_texts(), on_step=show
    )
    lm.model.half()
    lm.source = name
    lm.save(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the named checkpoints, or all, inside the package."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "names", nargs="*", default=list(EMBEDDED), metavar="NAME", help="e.g. embedded:chains-server"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "embedded")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in options.names:
        make_embedded(name, options.output / name.removeprefix("embedded:"))


if __name__ == "__main__":
    main()
