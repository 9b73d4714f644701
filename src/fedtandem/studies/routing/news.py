"""AG News among clients: what each of them holds, in training, calibration and test alike."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedtandem.data.items import Columns, Item, read_documents
from fedtandem.data.partition import alike_parts, iid_parts
from fedtandem.errors import DataError

LABELS = ("World", "Sports", "Business", "Sci/Tech")
SKEWS: dict[str, float | None] = {
    "dirichlet-0.1": 0.1, "dirichlet-0.5": 0.5, "dirichlet-1.0": 1.0, "iid": None,
}  # fmt: skip
"""Name -> Dirichlet concentration of the labels over clients; None shares them out evenly."""


@dataclass(frozen=True, eq=False)
class News:
    """One seed's sets.

    Attributes:
        fit: what models are trained on.
        calibration: what thresholds and settings are chosen on; no model was trained on it; classes of equal size, as
            in the test.
        test: the whole test split.
    """

    fit: tuple[Item, ...]
    calibration: tuple[Item, ...]
    test: tuple[Item, ...]


def read_news(folder: Path, seed: int, *, calibration: int, most: int | None = None) -> News:
    """Read both splits and draw the calibration set out of the training split.

    Args:
        folder: of `train.jsonl.gz` and `test.jsonl.gz`.
        seed: of the draw.
        calibration: its size; a multiple of the number of classes.
        most: rows of each file at most, for small forms.

    Raises:
        DataError: a file is missing, or too small for the calibration set.
    """
    train, test = (
        read_documents(folder / f"{split}.jsonl.gz", Columns(), LABELS, most) for split in ("train", "test")
    )
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(train))
    label = np.array([train[i].label for i in order])
    each = calibration // len(LABELS)
    taken = np.zeros(len(train), dtype=bool)
    for c, name in enumerate(LABELS):
        of_class = order[label == c]
        if len(of_class) < 2 * each:
            raise DataError(
                f"{folder}: {len(of_class)} training rows of class {name}; {2 * each} are needed."
            )
        taken[of_class[:each]] = True
    return News(
        tuple(train[i] for i in order if not taken[i]),
        tuple(train[i] for i in order if taken[i]),
        tuple(test),
    )


def shared_out(news: News, clients: int, skew: str, seed: int) -> News:
    """The same sets with a client for each row; a client's classes are as skewed in each of the three."""
    sets = (news.fit, news.calibration, news.test)
    rng = np.random.default_rng([seed, *hashlib.sha256(skew.encode()).digest()[:4]])
    alpha = SKEWS[skew]
    if alpha is None:
        parts = [iid_parts(len(items), clients, rng) for items in sets]
    else:
        parts = alike_parts([[str(item.label) for item in items] for items in sets], clients, alpha, rng)
    return News(*(_owned(items, mine) for items, mine in zip(sets, parts, strict=True)))


def _owned(items: Sequence[Item], parts: Sequence[npt.NDArray[np.int64]]) -> tuple[Item, ...]:
    owned = list(items)
    for number, part in enumerate(parts):
        for i in part.tolist():
            owned[i] = replace(items[i], client=f"client-{number:02d}")
    return tuple(owned)


def files_hash(folder: Path) -> str:
    """SHA-256 of both splits, for the record."""
    whole = hashlib.sha256()
    for split in ("train", "test"):
        path = folder / f"{split}.jsonl.gz"
        if not path.is_file():
            raise DataError(
                f"there is no {path}. Give the folder of AG News with --data; its licence is non-commercial, so it "
                "does not come with this package."
            )
        whole.update(path.read_bytes())
    return whole.hexdigest()
