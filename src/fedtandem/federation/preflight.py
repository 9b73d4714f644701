"""`fedtandem check`: validate, show what each party reads, estimate memory, bytes and time; loads no weights."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedtandem.config import PartyConfig, RunConfig, load_either
from fedtandem.data.load import load
from fedtandem.data.preview import Preview, describe
from fedtandem.data.public import Sample
from fedtandem.exchange.coding import MAX_ROWS_BYTES
from fedtandem.federation.estimate import Work, knowledge_bytes, memory_bytes, seconds
from fedtandem.federation.skeleton import render, shape_of_model, skeleton
from fedtandem.user_code import REFERENCE, import_function

SERVER = "server"
TOKENISED = 500
"""Samples that are tokenised for the estimate; longer sets are scaled up from them."""


@dataclass(frozen=True)
class PartyCheck:
    """What `check` found for one party.

    Attributes:
        rendered: one public sample as this party's tokens, those it learns in [brackets].
        memory_bytes: estimated peak while it trains.
        up_bytes, down_bytes: at most, per round.
        seconds: estimated, per round, on this machine.
        adapter_bytes: its trainable weights in 16 bits, what FedAvg would send each way.
        unscored: share of public samples whose answer does not fit into max_length.
    """

    party: str
    model: str
    parameters: int
    trainable: int
    vocab_size: int
    own_samples: int
    rendered: str
    memory_bytes: int
    up_bytes: int
    down_bytes: int
    seconds: float
    adapter_bytes: int
    unscored: float


@dataclass(frozen=True)
class Check:
    """Everything `check` says."""

    name: str
    methods: tuple[str, ...]
    sets: tuple[Preview, ...]
    parties: tuple[PartyCheck, ...]
    rounds: int
    cells: int
    """Runs in all: methods, or rows x seeds of a study."""

    @property
    def total_seconds(self) -> float:
        """All rounds of all methods (every method counted as if it did everything)."""
        return self.cells * self.rounds * sum(party.seconds for party in self.parties)


def check_command(
    file: str, *, overrides: list[str], json_output: bool = False, schema_only: bool = False
) -> int:
    """`fedtandem check FILE`.

    Raises:
        ConfigError, DataError, ModelError: what would have stopped the run.
    """
    config = load_either(file, overrides)
    if schema_only:
        print(json.dumps(type(config).model_json_schema(), indent=1))
        return 0
    found = check(config)
    if json_output:
        print(json.dumps(_as_json(found), default=str))
    else:
        print("\n".join(lines(found, file)))
    return 0


def check(config: RunConfig) -> Check:
    """Load all data, tokenise a part of it for every party, and estimate.

    Raises:
        ConfigError: a function of the user's own that cannot be imported.
        DataError: a file, column or row that cannot be used, with the party's name.
        ModelError: a model or tokenizer that cannot be found.
    """
    _import_own_functions(config)
    public = load(config.public.to_source(), where="public set")
    sets = [
        describe(public.samples, public.decision, where="public set", title=config.public.to_source().title)
    ]
    members: list[tuple[str, PartyConfig]] = [(SERVER, config.server)]
    members += [(client.name, client) for client in config.clients]
    own: dict[str, list[Sample]] = {name: [] for name, _ in members}
    for name, party in members:
        if party.data is not None:
            loaded = load(party.data.to_source(), where=f"{name}, own data")
            title = party.data.to_source().title
            sets.append(describe(loaded.samples, loaded.decision, where=f"{name}, own data", title=title))
            own[name] = loaded.samples
    for test in config.evaluation.sets:
        where = f"evaluation set {test.name}"
        loaded = load(test.data.to_source(), where=where)
        sets.append(describe(loaded.samples, loaded.decision, where=where, title=test.data.to_source().title))
    speed = _flops_per_second(config.num_threads)
    parties = [_party(config, name, party, public.samples, own[name], speed) for name, party in members]
    return Check(
        name=config.name,
        methods=config.methods,
        sets=tuple(sets),
        parties=tuple(_with_downlink(config, parties)),
        rounds=config.federation.num_rounds,
        cells=_cells(config),
    )


def _import_own_functions(config: RunConfig) -> None:
    named = {
        "selection.teacher": config.selection.teacher, "selection.selector": config.selection.selector,
        "public.check": config.public.check, "public.check_form": config.public.check_form,
    }  # fmt: skip
    for key, value in named.items():
        if REFERENCE.fullmatch(value):
            import_function(value, key, "as the documentation of that key says")


def _cells(config: RunConfig) -> int:
    study = getattr(config, "study", None)
    return len(config.methods) if study is None else len(study.rows) * len(study.seeds)


def _party(
    config: RunConfig, name: str, party: PartyConfig, public: list[Sample], own: list[Sample], speed: float
) -> PartyCheck:
    tokenizer, model = skeleton(config, name, party)
    shape = shape_of_model(party, model, tokenizer.vocab_size)
    lengths = _Lengths.of(tokenizer, party, public, config)
    own_lengths = _Lengths.of(tokenizer, party, own, config)
    work = _work(config, party, name, public, own, lengths, own_lengths)
    is_written = not config.public.labelled
    knowledge = knowledge_bytes(
        len(public),
        lengths.positions,
        top_k=min(config.knowledge.top_k_for(config.alignment.mode), tokenizer.vocab_size),
        values=config.knowledge.values,
        text_bytes=len(public) * 4 * config.public.max_new_tokens if is_written else 0,
    )
    return PartyCheck(
        party=name,
        model=party.model,
        parameters=shape.parameters,
        trainable=shape.trainable,
        vocab_size=tokenizer.vocab_size,
        own_samples=len(own),
        rendered=render(tokenizer, public[0], party),
        memory_bytes=memory_bytes(shape, work),
        up_bytes=0 if name == SERVER else knowledge,
        down_bytes=knowledge if name == SERVER else 0,
        seconds=seconds(shape, work, speed),
        adapter_bytes=2 * shape.trainable,
        unscored=lengths.unscored,
    )


def _with_downlink(config: RunConfig, parties: list[PartyCheck]) -> list[PartyCheck]:
    """Each client receives at most what the server knows; the server sends and receives the sums."""
    server, clients = parties[0], parties[1:]
    down = server.down_bytes if config.federation.send_down else 0
    up = sum(client.up_bytes for client in clients) if config.federation.send_up else 0
    changed = [PartyCheck(**{**vars(client), "down_bytes": down}) for client in clients]
    return [PartyCheck(**{**vars(server), "up_bytes": down * len(clients), "down_bytes": up}), *changed]


@dataclass(frozen=True)
class _Lengths:
    """Tokens of a whole set, scaled up from its first samples."""

    tokens: int
    positions: int
    longest: int
    unscored: float

    @staticmethod
    def of(tokenizer: Any, party: PartyConfig, samples: list[Sample], config: RunConfig) -> "_Lengths":
        if not samples:
            return _Lengths(0, 0, 0, 0.0)
        some = samples[:TOKENISED]
        factor = len(samples) / len(some)
        if samples[0].answer is None:
            extra = config.public.max_new_tokens
            prompts = [
                len(tokenizer.encode_prompt(s.prompt, chat_template=party.chat_template)) for s in some
            ]
            total = sum(prompts) + extra * len(some)
            longest = min(party.max_length, max(prompts) + extra)
            return _Lengths(int(total * factor), extra * len(samples), longest, 0.0)
        encoded = tokenizer.encode_many(
            [(sample.prompt, sample.answer or "") for sample in some],
            max_length=party.max_length,
            chat_template=party.chat_template,
            positions=config.knowledge.positions,
            eos=[sample.eos for sample in some],
        )
        return _Lengths(
            tokens=int(sum(len(one.input_ids) for one in encoded) * factor),
            positions=int(sum(len(one.positions) for one in encoded) * factor),
            longest=max(len(one.input_ids) for one in encoded),
            unscored=sum(not one.scored for one in encoded) / len(encoded),
        )


def _work(
    config: RunConfig,
    party: PartyConfig,
    name: str,
    public: list[Sample],
    own: list[Sample],
    lengths: _Lengths,
    own_lengths: _Lengths,
) -> Work:
    """One whole round of FedMKT: private phase (clients), public phase, public pass."""
    train_tokens, steps = 0, 0
    later = party.public_tuning.over(party.tuning)
    phases = [(later, len(public), lengths.tokens)]
    if name != SERVER:
        phases.append((party.tuning, len(own), own_lengths.tokens))
    for tuning, n, tokens in phases:
        if n == 0:
            continue
        batch = tuning.per_device_train_batch_size
        passes = tuning.num_train_epochs
        if tuning.max_steps > 0:
            passes = tuning.max_steps * batch * tuning.gradient_accumulation_steps / n
        train_tokens += int(tokens * passes)
        steps += max(1, int(n * passes / batch))
    batch = max(later.per_device_train_batch_size, party.tuning.per_device_train_batch_size)
    per_sample = max(lengths.positions / max(1, len(public)), own_lengths.positions / max(1, len(own)))
    return Work(
        train_tokens=train_tokens,
        train_steps=steps,
        score_tokens=lengths.tokens,
        write_tokens=0 if config.public.labelled else config.public.max_new_tokens * len(public),
        batch_size=batch,
        length=max(lengths.longest, own_lengths.longest),
        positions=int(batch * per_sample) + 1,
        checkpointing=party.tuning.gradient_checkpointing,
    )


def _flops_per_second(num_threads: int | None) -> float:
    """Speed of this machine on middle-sized matrices, a third of it taken as what training reaches."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    side = 4096 if device == "cuda" else 384
    matrix = torch.ones(side, side, device=device)
    threads = torch.get_num_threads()
    # One thread: several that wait for each other on busy cores would measure the other programs.
    torch.set_num_threads(1)
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        (matrix @ matrix).sum().item()
        best = min(best, time.perf_counter() - start)
    torch.set_num_threads(threads)
    return 2 * side**3 / best / 3 * (1 if device == "cuda" else num_threads or threads)


def lines(found: Check, file: str | Path) -> list[str]:
    """The check for a terminal."""
    text = [f"{file}: valid. {found.name}: {', '.join(found.methods)}, {found.rounds} rounds"]
    for one in found.sets:
        text += ["", *one.lines()]
    for party in found.parties:
        text += ["", f"{party.party}: {party.model}, {_count(party.parameters)} parameters, "
                 f"{_count(party.trainable)} trained, {party.vocab_size:,} tokens, {party.own_samples} own samples",
                 f"  {party.rendered}"]  # fmt: skip
        if party.unscored:
            text.append(
                f"  {party.unscored:.0%} of the public answers do not fit into max_length and are left out"
            )
    text += [
        "",
        f"{'per round':<16}{'memory':>12}{'sends <=':>12}{'receives <=':>13}{'FedAvg sends':>14}{'time ~':>10}",
    ]
    for party in found.parties:
        text.append(
            f"{party.party:<16}{_size(party.memory_bytes):>12}{_size(party.up_bytes):>12}"
            f"{_size(party.down_bytes):>13}{_size(party.adapter_bytes):>14}{_duration(party.seconds):>10}"
        )
    heaviest = max(max(party.up_bytes, party.down_bytes) for party in found.parties[1:])
    if heaviest > MAX_ROWS_BYTES:
        text.append(
            f"One party's rows may take {_size(heaviest)}; a receiver unpacks at most {_size(MAX_ROWS_BYTES)} and "
            "refuses more. Lower knowledge.top_k, or give fewer public samples."
        )
    text += ["", f"all {found.cells} runs of {found.rounds} rounds: about {_duration(found.total_seconds)} on this "
             "machine (to a factor of three), evaluation and pretraining not counted.",
             "Bytes are upper bounds: only rows that win the selection are sent."]  # fmt: skip
    return text


def _as_json(found: Check) -> Mapping[str, Any]:
    plain = asdict(found)
    for one in plain["sets"]:
        one.pop("first")
    return {**plain, "total_seconds": found.total_seconds}


def _count(n: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return str(n)


def _size(n: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n} B"


def _duration(value: float) -> str:
    if value < 90:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 5400 else f"{value / 3600:.1f} h"
