"""From a config to plain objects: data, models, and for each method a server with its clients."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from fedtandem.algorithms.checked_paths import prepare_check
from fedtandem.algorithms.client import Client, Store
from fedtandem.algorithms.defence import Defence, DefenceSettings
from fedtandem.algorithms.learner import Emit, Learner, Progress, Remembered, TestSet
from fedtandem.algorithms.server import Server
from fedtandem.algorithms.settings import Flow, KnowledgeSettings, Rounds, Unlabelled
from fedtandem.alignment.vocabulary import byte_map, min_ed_map
from fedtandem.config import PartyConfig, RunConfig, ScratchConfig, TuningConfig
from fedtandem.config.alignment import Mode
from fedtandem.data.load import load_samples
from fedtandem.data.private import PrivateText
from fedtandem.data.public import Sample, check_samples
from fedtandem.errors import ConfigError
from fedtandem.evaluation.scorer import Evaluation
from fedtandem.exchange.card import Card
from fedtandem.federation.methods import Method
from fedtandem.federation.privacy_ledger import Vault
from fedtandem.federation.processes import of_the_first
from fedtandem.federation.secret_key import secret_key
from fedtandem.federation.selectors import Sides, selection_sides
from fedtandem.federation.store import RoundStore
from fedtandem.models.language_model import LanguageModel
from fedtandem.models.load import ModelSpec, load_model
from fedtandem.models.map_cache import cached_map
from fedtandem.models.scratch import cache_folder, cached_scratch
from fedtandem.selection.selectors import Selector, load_selector
from fedtandem.tuning.dp_sgd import PrivateTraining
from fedtandem.tuning.phase import PhaseSettings

Report = Callable[[str, int, Mapping[str, Evaluation]], None]
"""`report(party, round, split -> evaluation)`."""

SERVER = "server"
DEFENCE_KEY = "defence.key"
"""In the server's folder: which samples of its clients are checked; nobody else may know it."""
REMEMBERED_BYTES = 64 * 2**20
"""Trainable weights up to this size: a private phase that several methods begin with is done once and kept."""


@dataclass
class PartyParts:
    """What a party holds before any method runs."""

    config: PartyConfig
    name: str
    lm: LanguageModel
    untouched: dict[str, Tensor]
    own: list[Sample]
    tests: list[TestSet]
    private_text: PrivateText | None


@dataclass
class Parts:
    """Everything loaded once and used by every method of a run."""

    config: RunConfig
    public: list[Sample]
    parties: dict[str, PartyParts]
    memo: dict[str, Remembered] | None = None
    """Private phases that several methods begin with; each is done once. None: none are kept."""


def load_parts(config: RunConfig, progress: Progress, only: Collection[str] | None = None) -> Parts:
    """Load data and models of all parties.

    Args:
        only: the parties that are here; None: all of them.

    Raises:
        DataError, ModelError: what a file or a model lacks, with the party's name.
    """
    public = load_samples(config.public.to_source(), where="public set")
    check_samples(public, labelled=config.public.labelled, where="public set")
    prepare_check(config.public.check_settings(), public, config.public.check_answers)
    parties: dict[str, PartyParts] = {}
    members = [(SERVER, config.server), *((client.name, client) for client in config.clients)]
    members = [(name, party) for name, party in members if only is None or name in only]
    for at, (name, party) in enumerate(members):
        progress("loading models and data", at, len(members))
        own = (
            load_samples(party.data.to_source(), where=f"{name}, own data") if party.data is not None else []
        )
        check_samples(own, labelled=True, where=f"{name}, own data")
        lm = load_model(model_spec(config, party, name, progress))
        lm.name = party.model
        parties[name] = PartyParts(
            party, name, lm, lm.state(), own, _tests(config, name),
            PrivateText.from_samples(own) if name != SERVER else None,
        )  # fmt: skip
    progress("loading models and data", len(members), len(members))
    return Parts(config, public, parties)


def model_spec(config: RunConfig, party: PartyConfig, name: str, progress: Progress) -> ModelSpec:
    """The plain values `load_model` needs; a model to be made from scratch is made (or found in the cache) here."""
    model = party.model
    if party.scratch is not None:
        model = str(scratch_folder(party.scratch, config.seed, name, progress))
    return ModelSpec(
        model=model,
        revision=party.revision,
        dtype=party.dtype,
        device=party.device,
        trust_remote_code=party.trust_remote_code,
        load_in_4bit=party.load_in_4bit,
        tuning_method=party.tuning.method,
        peft=party.tuning.peft,
        gradient_checkpointing=party.tuning.gradient_checkpointing,
        seed=config.seed,
    )


def scratch_folder(scratch: ScratchConfig, run_seed: int, name: str, progress: Progress) -> Path:
    """The folder of a model trained from nothing on its own texts, kept by the hash of all that decides it."""
    samples = load_samples(scratch.data.to_source(), where=f"{name}, pretraining data")
    check_samples(samples, labelled=True, where=f"{name}, pretraining data")
    spec = scratch.to_spec(run_seed, samples)
    rows = [(sample.prompt, sample.answer or "") for sample in samples]
    return cached_scratch(
        spec, rows, on_step=lambda done, of, _loss: progress(f"{name}: pretraining from scratch", done, of)
    ).folder


def _tests(config: RunConfig, name: str) -> list[TestSet]:
    return [
        TestSet(
            test.name, test.metric, load_samples(test.data.to_source(), where=f"{name}, test set {test.name}")
        )
        for test in config.evaluation.sets
        if name in test.parties or "*" in test.parties or ("clients" in test.parties and name != SERVER)
    ]


@dataclass(frozen=True)
class Frame:
    """What server and clients of one method have in common."""

    mode: Mode
    flow: Flow
    rounds: Rounds
    selector: Selector
    sides: Sides


def frame_of(parts: Parts, method: Method, *, measure_untouched: bool) -> Frame:
    """A method's clock, arrows and selectors.

    Args:
        measure_untouched: whether this method measures the untouched models.

    Raises:
        ConfigError: the method cannot be carried out on this public set.
    """
    config = parts.config
    mode: Mode = method.mode or config.alignment.mode
    if mode == "mined" and not config.public.labelled and config.public.send_rows:
        raise ConfigError(
            "public.labelled is false and the alignment is 'mined', which needs the teacher's tokens of every text; "
            'written paths travel without them. Set public.send_rows = false, or alignment.mode = "bytes".'
        )
    rounds = Rounds(
        0 if method.no_rounds else config.federation.num_rounds,
        config.seed,
        config.evaluation.every,
        measure_untouched,
        config.federation.private_rounds,
    )
    selector = load_selector(method.teacher or config.selection.teacher, margin=config.selection.margin)
    flow = flow_of(method, config)
    return Frame(mode, flow, rounds, selector, selection_sides(config, parts.public, flow, method.items))


def assemble(
    parts: Parts,
    method: Method,
    folder: Path,
    emit: Emit,
    progress: Progress,
    report: Report,
    *,
    measure_untouched: bool,
) -> tuple[Server, dict[str, Client]]:
    """A server and the clients that are here for one method, in the untouched state.

    Args:
        folder: where the parties commit their states.
        measure_untouched: whether this method measures the untouched models.
    """
    frame = frame_of(parts, method, measure_untouched=measure_untouched)
    learner = _learner(parts, SERVER, frame, emit, progress)
    if method.pools_private:
        clients = [party for name, party in parts.parties.items() if name != SERVER]
        learner.own = [*learner.own, *(sample for party in clients for sample in party.own)]
    server = Server(
        learner, frame.flow, frame.rounds, frame.selector, _map_maker(learner.lm, frame.mode),
        RoundStore(folder / SERVER), report=partial(report, SERVER), selecting=frame.sides.server(learner),
        offering=frame.sides.offering, defence=_defence(parts.config, learner, folder / SERVER),
    )  # fmt: skip
    return server, {
        name: assemble_client(
            parts, name, frame, RoundStore(folder / name), emit, progress, report, Vault(folder / name)
        )
        for name in parts.parties
        if name != SERVER
    }


def assemble_client(
    parts: Parts,
    name: str,
    frame: Frame,
    store: Store,
    emit: Emit,
    progress: Progress,
    report: Report,
    vault: Vault,
) -> Client:
    """One client for one method, in the untouched state.

    Args:
        store: where it commits its states.
        vault: where its privacy budget is kept.
    """
    privacy = parts.parties[name].config.privacy.and_(parts.config.privacy)
    learner = _learner(parts, name, frame, emit, progress, vault.training(privacy))
    return Client(
        learner, frame.flow, frame.rounds, frame.selector, _map_maker(learner.lm, frame.mode), store,
        repeats_private=_refusal(parts.parties[name]), keep_in_memory=parts.config.federation.keep_models,
        report=partial(report, name), selecting=frame.sides.clients(learner), noised=vault.noise(privacy),
    )  # fmt: skip


def flow_of(method: Method, config: RunConfig) -> Flow:
    """The method's arrows, less those the config takes out of FedMKT itself."""
    federation = config.federation
    if not (method.flow.up and method.flow.down):
        return method.flow
    return replace(
        method.flow,
        server_learns=federation.train_server,
        up=federation.send_up and federation.train_server,
        down=federation.send_down,
        aggregate_every=federation.aggregate_every,
    )


def _defence(config: RunConfig, learner: Learner, folder: Path) -> Defence | None:
    if config.defence is None:
        return None
    key = of_the_first(secret_key(folder / DEFENCE_KEY))
    return Defence(DefenceSettings(**config.defence.model_dump()), learner, key)


def _refusal(party: PartyParts) -> Callable[[str], bool]:
    private = party.private_text
    return (lambda text: False) if private is None else private.repeats


def _learner(
    parts: Parts,
    name: str,
    frame: Frame,
    emit: Emit,
    progress: Progress,
    private: PrivateTraining | None = None,
) -> Learner:
    config, party, mode = parts.config, parts.parties[name], frame.mode
    section = party.config
    party.lm.load_state(party.untouched)
    distillation, knowledge = config.distillation, config.knowledge
    unlabelled = None
    if not config.public.labelled:
        unlabelled = Unlabelled(
            config.public.max_new_tokens,
            config.public.confidence_keep,
            config.public.send_rows,
            config.public.temperature,
            config.public.check_returns,
            config.public.check_offers,
        )
    on_server = name == SERVER
    hard_weight = distillation.hard_weight_for(mode, server=on_server)
    public_tuning = section.public_tuning.over(section.tuning)
    return Learner(
        name=name,
        lm=party.lm,
        public=parts.public,
        own=party.own,
        tests=party.tests,
        private_settings=phase_settings(section.tuning),
        public_settings=phase_settings(
            public_tuning,
            hard_weight=hard_weight,
            temperature=distillation.temperature,
            untaught=distillation.untaught_for(mode),
            loss="mined" if mode == "mined" else distillation.loss,
            label_smoothing=distillation.label_smoothing,
        ),
        knowledge=KnowledgeSettings(
            mode=mode,
            top_k=knowledge.top_k_for(mode),
            top_k_mass=knowledge.top_k_mass_for(mode),
            positions=knowledge.positions,
            values=knowledge.values,
            two_phase=knowledge.exchange != "one_phase",
            shared_downlink=knowledge.downlink == "shared",
            on_self=config.selection.on_self,
            batch_size=config.evaluation.batch_size,
        ),
        unlabelled=unlabelled,
        replay_fraction=distillation.replay_fraction_for(server=on_server, labelled=config.public.labelled),
        num_rounds=max(1, frame.rounds.num_rounds),
        private_rounds=_private_rounds(name, frame.rounds),
        seed=config.seed,
        max_length=section.max_length,
        chat_template=section.chat_template,
        reset_optimizer=distillation.reset_optimizer,
        eval_batch_size=config.evaluation.batch_size,
        check=config.public.check_settings(),
        check_answers=config.public.check_answers,
        emit=emit,
        progress=progress,
        memo=parts.memo  # a budget is spent by each method on its own
        if private is None and sum(tensor.nbytes for tensor in party.untouched.values()) < REMEMBERED_BYTES
        else None,
        private_training=private,
    )


def _private_rounds(name: str, rounds: Rounds) -> int | None:
    """Over how many rounds the rate of a party's private phase falls; the server has one only as a bound, in all."""
    if name == SERVER or rounds.private_rounds is None:
        return None
    return max(1, min(rounds.private_rounds, rounds.num_rounds))


def phase_settings(tuning: TuningConfig, **distillation: object) -> PhaseSettings:
    """The plain values of one kind of phase."""
    return PhaseSettings(
        learning_rate=tuning.learning_rate,
        num_train_epochs=tuning.num_train_epochs,
        max_steps=tuning.max_steps,
        batch_size=tuning.per_device_train_batch_size,
        gradient_accumulation_steps=tuning.gradient_accumulation_steps,
        betas=(tuning.adam_beta1, tuning.adam_beta2),
        weight_decay=tuning.weight_decay,
        max_grad_norm=tuning.max_grad_norm,
        warmup_ratio=tuning.warmup_ratio,
        lr_scheduler_type=tuning.lr_scheduler_type,
        **distillation,  # type: ignore[arg-type]
    )


def _map_maker(lm: LanguageModel, mode: str) -> Callable[[Card], np.ndarray]:
    base = lm.tokenizer

    def build(card: Card) -> np.ndarray:
        if mode == "mined":
            return min_ed_map(base.card, card.vocabulary)
        return byte_map(base.card, card.vocabulary, base.first_pieces)

    return lambda card: cached_map(
        cache_folder() / "maps", base.card, card.vocabulary, mode, lambda: build(card)
    )


__all__ = [
    "Parts", "PartyParts", "Selector", "assemble", "assemble_client", "flow_of", "frame_of", "load_parts", "model_spec",
    "phase_settings",
]  # fmt: skip
