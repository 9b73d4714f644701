"""The study of generation: what a small model saves a large one, measured answer by answer.

    python -m fedtandem.studies.generation --output studies/generation

Every cell is one way of answering the same prompts: text, seed, drafter, mode, uplink, block. It is written to
`cells/` as soon as it is done; a run that was stopped goes on from there. `summary.json` and `report.html` are made of
the cells; `studies/tables.py` copies tables into docs/evidence.md.
"""

import argparse
import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedtandem.atomic import write_text
from fedtandem.config import RunConfig, load_config
from fedtandem.data.chains import ChainsSource
from fedtandem.data.load import load_samples
from fedtandem.federation.build import model_spec
from fedtandem.federation.generate import measure
from fedtandem.inference.bounds import LEAST, Bounds, bounds_from_audits
from fedtandem.inference.generate import Bridge, Generation, generate
from fedtandem.inference.settings import DecodeSettings, Mode
from fedtandem.inference.uplink import Uplink
from fedtandem.models.language_model import LanguageModel
from fedtandem.models.load import ModelSpec, load_model
from fedtandem.studies.generation_summary import summarise

NEW_TOKENS = 32
PROMPT_CHARACTERS = 96
TAU_KEPT, EPS = 0.5, 0.1
FULL_BLOCK = 1.0
"""As tau: no draft is too doubtful, so blocks are full and their size is what is measured."""
COPY_BITS = 3
"""Of the weights of the drafter `copy`, the LLM itself rounded: its drafts are sure enough to be kept."""


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    texts: tuple[str, ...] = ("novels", "chains")
    seeds: tuple[int, ...] = (0, 1, 2)
    prompts: int = 40
    chains_prompts: int = 100
    blocks: tuple[int, ...] = (1, 2, 4, 12)


SMALL = Size(texts=("chains",), chains_prompts=12, blocks=(2,))
"""The built-in models alone: nothing is trained, no data is read."""


@dataclass(frozen=True)
class Cell:
    """One way of answering.

    Attributes:
        text: "novels" or "chains".
        seed: of models and sampling.
        drafter: a party of the text, or "copy": the LLM in COPY_BITS bits; "" in mode `cloud`.
        bridge: "same", "slem" or "tli".
        calibration: answers the prompts that bounds are made of.
    """

    text: str
    seed: int
    drafter: str
    bridge: str
    mode: Mode
    uplink: Uplink
    block: int = 6
    calibration: bool = False

    @property
    def name(self) -> str:
        """Of its file."""
        parts = (
            self.text,
            self.seed,
            self.drafter or "alone",
            self.bridge,
            self.mode,
            self.uplink,
            self.block,
        )
        return "-".join(map(str, parts)) + ("-calibration" if self.calibration else "")


def cells(size: Size) -> list[Cell]:
    """All of them; what another cell is compared with comes first."""
    found = []
    for text, seeds, drafters in (
        ("chains", (0,), (("client-a", "slem"), ("client-b", "slem"), ("client-a", "tli"))),
        ("novels", size.seeds, (("small", "same"), ("kipling", "slem"), ("kipling", "tli"))),
    ):
        for seed in seeds if text in size.texts else ():
            for uplink in ("greedy", "shared_noise"):
                found.append(Cell(text, seed, "", "same", "cloud", uplink))
                found += [Cell(text, seed, *drafter, "exact", uplink) for drafter in drafters]
            first = drafters[0]
            found += [Cell(text, seed, *first, "exact", "shared_noise", block) for block in size.blocks]
            kept = drafters[0] if text == "novels" else drafters[2]  # SLEM cannot keep tokens unseen
            found += [Cell(text, seed, *kept, "exact", uplink) for uplink in ("scalar", "sparse")]
            copied = ("copy", "same")
            found += [Cell(text, seed, *copied, "exact", "shared_noise")]
            for drafter in (kept, copied):
                fedhlm = Cell(text, seed, *drafter, "fedhlm", "scalar")
                found += [replace(fedhlm, calibration=True), fedhlm, replace(fedhlm, mode="bounded")]
    return found


class Study:
    """Models and prompts, loaded once, and the folder of cells.

    Args:
        configs: files whose parties write prose, the first with the server.
        size: how much.
        output: the study's folder.
    """

    def __init__(self, configs: Sequence[Path], size: Size, output: Path) -> None:
        self.size, self.output = size, output
        self._configs = configs
        self._model = cache(self._load)
        self._config = cache(lambda file, seed: load_config(file, [f"seed={seed}"]))

    def run(self, say: Callable[[str], None] = print) -> dict[str, Any]:
        """Every cell that is not there yet, then the summary."""
        every = cells(self.size)
        for at, cell in enumerate(every):
            file = self.output / "cells" / f"{cell.name}.json"
            if not file.is_file():
                write_text(file, json.dumps(self.measure(cell)))
                say(f"{at + 1}/{len(every)} {cell.name}")
        summary = summarise([self.read(cell) for cell in every], asdict(self.size))
        write_text(self.output / "summary.json", json.dumps(summary, indent=1) + "\n")
        return summary

    def read(self, cell: Cell) -> dict[str, Any]:
        """A finished cell."""
        found: dict[str, Any] = json.loads((self.output / "cells" / f"{cell.name}.json").read_text("utf-8"))
        return found

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Answer the cell's prompts."""
        audits: list[tuple[int, float, float]] = []
        settings = DecodeSettings(
            mode=cell.mode,
            uplink=cell.uplink,
            block=cell.block,
            tau=TAU_KEPT if cell.mode in ("fedhlm", "bounded") else FULL_BLOCK,
            eps=EPS if cell.mode == "bounded" else None,
            max_new_tokens=NEW_TOKENS,
            seed=1000 * cell.seed,
            audit="all",
        )
        answers = generate(
            self._model(cell.text, cell.seed, cell.drafter) if cell.drafter else None,
            self._model(cell.text, cell.seed, "server"),
            self._prompts(cell),
            settings,
            uncertainty=measure("expected"),
            beta_upper=self._bounds(cell) if cell.mode == "bounded" else None,
            bridge=_BRIDGES[cell.bridge],
            batch_size=64,
            on_audit=lambda row, u, error: audits.append((row, u, error)),
        )
        return {
            "cell": asdict(cell),
            "records": [answer.record.as_dict() for answer in answers],
            "ids": [answer.ids for answer in answers],
            "agreement": self._agreement(cell, answers),
            "audits": audits if cell.calibration else [],
        }

    def _agreement(self, cell: Cell, answers: Sequence[Generation]) -> list[str]:
        """Per answer of `exact`: "equal", "tie" (differs from the LLM alone after a near tie) or "fault"."""
        if cell.mode != "exact" or cell.uplink not in ("greedy", "shared_noise"):
            return []
        alone = self.read(replace(cell, drafter="", bridge="same", mode="cloud", block=6))
        found = []
        for answer, ids, record in zip(answers, alone["ids"], alone["records"], strict=True):
            ties = [
                tie for tie in (answer.record.first_near_tie, record["first_near_tie"]) if tie is not None
            ]
            end = min(ties, default=None)
            found.append(
                "equal" if answer.ids == ids else "tie" if answer.ids[:end] == ids[:end] else "fault"
            )
        return found

    def _bounds(self, cell: Cell) -> Bounds:
        audits = self.read(replace(cell, mode="fedhlm", calibration=True))["audits"]
        if len(audits) < LEAST:
            return Bounds((), ())  # nothing is known: the bound is 1 everywhere
        row, u, error = zip(*audits, strict=True)
        return bounds_from_audits(u, error, row, np.random.default_rng(cell.seed))

    def _prompts(self, cell: Cell) -> list[str]:
        if cell.text == "chains":
            n, seed = (
                (4 * self.size.chains_prompts, 72) if cell.calibration else (self.size.chains_prompts, 71)
            )
            return [sample.prompt for sample in ChainsSource(n=n, steps=(1, 2, 3), seed=seed).samples()]
        # Windows of the test part that no model of the study was trained on; its validation part calibrates.
        config = self._config(self._configs[-1], cell.seed)
        wanted = "mixed-validation" if cell.calibration else "mixed"
        chosen = next(test for test in config.evaluation.sets if test.name == wanted)
        samples = load_samples(chosen.data.to_source(), where=wanted)
        samples = samples if cell.calibration else samples[: self.size.prompts]
        return [(sample.answer or "")[:PROMPT_CHARACTERS] for sample in samples]

    def _load(self, text: str, seed: int, name: str) -> LanguageModel:
        if name == "copy":
            return rounded(self._model(text, seed, "server"), COPY_BITS)
        if text == "chains":
            return load_model(ModelSpec(f"embedded:chains-{name}", tuning_method="none"))
        for file in self._configs:
            config: RunConfig = self._config(file, seed)
            parties = {"server": config.server, **{client.name: client for client in config.clients}}
            if name in parties:
                return load_model(model_spec(config, parties[name], name, lambda *_: None))
        raise KeyError(name)


def rounded(lm: LanguageModel, bits: int) -> LanguageModel:
    """A copy with every row of every matrix rounded to `bits` bits: symmetric, one scale a row."""
    model = copy.deepcopy(lm.model)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim == 2:
                step = weights.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
                weights.copy_((weights / step).round() * step)
    return LanguageModel(model, lm.tokenizer, name=f"{lm.name}, {bits} bits")


_BRIDGES: Mapping[str, Bridge] = {"same": "auto", "slem": "slem", "tli": "tli"}


def main() -> None:
    parser = argparse.ArgumentParser(description="the study of generation")
    parser.add_argument(
        "--output", type=Path, required=True, help="the study's folder; go on with what it holds"
    )
    parser.add_argument("--small", action="store_true", help="a few prompts of the built-in playground")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    here = Path("studies")
    configs = [here / "generation" / "novels.toml", here / "novels" / "authors.toml"]
    from fedtandem.reports.generation_page import write_page

    study = Study(configs, SMALL if arguments.small else Size(), arguments.output)
    summary = study.run()
    write_page(summary, arguments.output / "report.html")
    print(f"report: {arguments.output / 'report.html'}")


if __name__ == "__main__":
    main()
