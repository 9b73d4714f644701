"""Every fault a user can meet, and the exit code it ends the program with.

    FedtandemError                          1   a fault of this program
    ├── ConfigError                         2   usage or config
    │   ├── PublicSetMismatch               2   the parties do not hold the same public set
    │   └── ConsentError                    2   a server asks a site for more than its file allows
    ├── DataError                           3   missing file, wrong column, empty answer
    ├── ModelError                          4   a model or tokenizer cannot be loaded or used
    │   ├── VocabularyMismatch              4   made with another tokenizer
    │   └── UnknownTokenId                  4   an id outside the vocabulary
    ├── NetworkError                        5   no connection, not admitted
    ├── QuorumError                         6   too few valid replies in a round
    ├── PrivacyBudgetError                  7   the privacy budget is spent
    ├── OutOfMemoryFailure                  8   memory of the machine or the accelerator ran out
    ├── InvalidMessage                      9   NaN, truncated or tampered frame
    ├── DiskFull                           10   nothing half-written is left behind
    └── Interrupted                       130   stopped by the user; `--resume` goes on

0 is success. A message says what was wrong, which value, and what to do about it.
"""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches


class FedtandemError(Exception):
    """Base of all faults; raised itself only when this program contradicts itself."""

    exit_code: int = 1


class ConfigError(FedtandemError):
    """A config, an option or a command line that cannot be carried out."""

    exit_code = 2


class PublicSetMismatch(ConfigError):
    """Two parties hold different public sets; raised before the first round."""


class ConsentError(ConfigError):
    """A run asks a site for more than the site's own file allows; raised there, before anything is sent."""


class DataError(FedtandemError):
    """A data file is missing, lacks a column, or holds a row that cannot be used."""

    exit_code = 3


class ModelError(FedtandemError):
    """A model or a tokenizer cannot be found, loaded or used as asked."""

    exit_code = 4


class VocabularyMismatch(ModelError):
    """Weights or knowledge were made with a different vocabulary."""


class UnknownTokenId(ModelError):
    """A token id lies outside the vocabulary it should belong to."""


class NetworkError(FedtandemError):
    """Another machine could not be reached, or did not admit us."""

    exit_code = 5


class QuorumError(FedtandemError):
    """Fewer valid replies than `federation.min_clients`, under `on_short = "fail"`."""

    exit_code = 6


class PrivacyBudgetError(FedtandemError):
    """The next step would spend more privacy budget than was granted."""

    exit_code = 7


class OutOfMemoryFailure(FedtandemError):
    """Memory ran out; the message names the settings that need less."""

    exit_code = 8


class InvalidMessage(FedtandemError):
    """A frame or a message is truncated, tampered with, or holds values it must not."""

    exit_code = 9


class DiskFull(FedtandemError):
    """The disk is full; the unfinished file was removed."""

    exit_code = 10


class Interrupted(FedtandemError):
    """The user stopped the program; the last committed round is safe."""

    exit_code = 130


def error_classes(root: type[FedtandemError] = FedtandemError) -> Iterator[type[FedtandemError]]:
    """The whole tree, parents before children."""
    yield root
    for child in root.__subclasses__():
        yield from error_classes(child)


def did_you_mean(value: str, known: Iterable[str]) -> str:
    """The end of a message: `; did you mean "x"?`, or a full stop where nothing is near."""
    near = get_close_matches(value, list(known), n=1)
    return f'; did you mean "{near[0]}"?' if near else "."
