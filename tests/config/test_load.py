"""Configs: files over files, overrides by name, and every fault in one message."""

from pathlib import Path
from typing import Any

import pytest
import tomli_w
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fedtandem.config import (
    RunConfig,
    cell_config,
    load_config,
    load_either,
    load_resolved,
    load_study,
    with_overrides,
)
from fedtandem.config.schema import leaves, shape_of
from fedtandem.config.section import Section
from fedtandem.errors import ConfigError


def minimal(**sections: Any) -> dict[str, Any]:
    """The smallest config, with sections added or replaced."""
    return {
        "name": "t",
        "server": {"model": "org/llm"},
        "clients": [
            {"name": "clinic-a", "model": "org/slm", "data": {"path": "a.jsonl"}},
            {"name": "clinic-b", "model": "org/slm", "data": {"path": "b.jsonl"}},
        ],
        "public": {"path": "public.jsonl"},
        **sections,
    }


def write(folder: Path, document: dict[str, Any], name: str = "run.toml") -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(tomli_w.dumps(document) if name.endswith(".toml") else yaml.safe_dump(document))
    return file


def faults(folder: Path, document: dict[str, Any], overrides: list[str] | None = None) -> list[str]:
    """The lines of the message, without its head."""
    with pytest.raises(ConfigError) as raised:
        load_config(write(folder, document), overrides or [])
    head, *lines = str(raised.value).splitlines()
    assert head.startswith("1 fault in" if len(lines) == 1 else f"{len(lines)} faults in")
    return [line.strip() for line in lines]


# -- the shape of the schema -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selection", "public", "expected"),
    [
        ({}, {}, "all"),
        ({"budget": 4}, {}, "confident_gap"),
        ({"budget": 4}, {"labelled": False}, "confident_gap"),
        ({"budget": 4}, {"labelled": False, "check": "arithmetic"}, "verified_gap"),
        ({"budget": 4, "selector": "random"}, {"labelled": False, "check": "arithmetic"}, "random"),
    ],
)
def test_a_budget_without_a_selector_takes_the_best_one(
    tmp_path: Path, selection: dict[str, object], public: dict[str, object], expected: str
) -> None:
    document = minimal(selection=selection)
    document["public"] |= public
    assert load_config(write(tmp_path, document)).selection.selector == expected


def test_the_schema_of_the_documentation_loads(tmp_path: Path) -> None:
    """Names that other programs rely on: add, never rename."""
    file = tmp_path / "run.toml"
    file.write_text(
        """
name = "chains"
algorithm = "fedmkt"
seed = 0
controls = ["standalone_public", "server_public"]
[server]
model = "embedded:chains-server"
dtype = "auto"
  [server.tuning]
  method = "lora"
  learning_rate = 1e-3
  num_train_epochs = 1
  per_device_train_batch_size = 32
    [server.tuning.peft]
    r = 8
    lora_alpha = 16
  [server.data]
  path = "own.jsonl"
[[clients]]
name = "clinic-a"
model = "embedded:chains-client-a"
  [clients.data]
  path = "a.jsonl"
[public]
path = "public.jsonl"
labelled = true
[alignment]
mode = "bytes"
[knowledge]
top_k = 64
top_k_mass = 0.99
[distillation]
temperature = 1.0
hard_weight = 0.1
untaught = "labels"
replay_fraction = 0.0
[selection]
selector = "dual_min_ce"
on_self = "skip"
[federation]
carrier = "local"
num_rounds = 5
min_clients = 1
deadline_s = 600
on_short = "wait"
[evaluation]
[report]
"""
    )
    config = load_config(file)
    assert config.methods == ("fedmkt", "standalone_public", "server_public")
    assert config.server.tuning.peft == {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05}
    assert config.public.path == (str(tmp_path / "public.jsonl"),)


def test_defaults_are_the_papers_or_say_why(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, minimal()))
    tuning = config.server.tuning
    assert (tuning.learning_rate, tuning.num_train_epochs, tuning.per_device_train_batch_size) == (3e-5, 1, 4)
    assert (tuning.adam_beta1, tuning.adam_beta2, tuning.weight_decay, tuning.warmup_ratio) == (
        0.9,
        0.95,
        0.1,
        0.008,
    )
    assert config.federation.num_rounds == 5
    knowledge, distillation = config.knowledge, config.distillation
    assert [knowledge.top_k_for(mode) for mode in ("bytes", "mined")] == [64, 128]
    assert [knowledge.top_k_mass_for(mode) for mode in ("bytes", "mined")] == [0.99, 1.0]
    assert [distillation.hard_weight_for("bytes", server=server) for server in (False, True)] == [0.1, 0.5]
    assert [distillation.hard_weight_for("mined", server=server) for server in (False, True)] == [0.9, 0.9]
    assert [distillation.untaught_for(mode) for mode in ("bytes", "mined")] == ["labels", "paper"]
    replay = [
        distillation.replay_fraction_for(server=server, labelled=labelled)
        for labelled in (True, False)
        for server in (False, True)
    ]
    assert replay == [0.0, 0.0, 0.375, 0.5]


def test_every_key_is_documented_and_the_json_schema_shows_it() -> None:
    def check(section: type[Section]) -> None:
        for key, info in section.model_fields.items():
            assert info.description, f"{section.__name__}.{key} has no docstring"
            shape = shape_of(section, key)
            if shape.section is not None:
                check(shape.section)

    check(RunConfig)
    schema = RunConfig.model_json_schema()
    assert schema["$defs"]["KnowledgeConfig"]["properties"]["top_k"]["description"].startswith("Logits kept")


def test_data_sections_mirror_the_data_source_field_by_field() -> None:
    from dataclasses import fields

    from fedtandem.config import ChainsConfig, DataConfig, PartitionConfig
    from fedtandem.data.chains import ChainsSource
    from fedtandem.data.partition import Partition
    from fedtandem.data.source import DataSource

    assert set(DataConfig.model_fields) == {field.name for field in fields(DataSource)}
    assert set(PartitionConfig.model_fields) == {field.name for field in fields(Partition)}
    assert set(ChainsConfig.model_fields) == {field.name for field in fields(ChainsSource)} - {"labelled"}


def test_a_data_section_becomes_its_source(tmp_path: Path) -> None:
    data = {
        "path": ["a.jsonl", "{data.root}/b.jsonl"],
        "columns": {"prompt": "q"},
        "filter": {"author": ["A*", "B*"], "year": "19*"},
        "partition": {"kind": "field", "parts": 3, "index": 2, "field": "author"},
        "limit_bytes": 1000,
    }
    file = write(tmp_path, minimal(public=data, seed=4, data={"root": "shared"}))
    source = load_config(file).public.to_source()
    assert source.path == (str(tmp_path / "a.jsonl"), str(tmp_path / "shared" / "b.jsonl"))
    assert source.filter == {"author": ("A*", "B*"), "year": "19*"}
    assert source.partition is not None
    assert (source.partition.index, source.partition.seed, source.seed) == (2, 4, 4)
    assert (source.columns, source.limit_bytes) == ({"prompt": "q"}, 1000)


# -- files -------------------------------------------------------------------------------------------------------


def test_yaml_and_toml_say_the_same(tmp_path: Path) -> None:
    document = minimal(distillation={"hard_weight": 0.25}, seed=3)
    toml, yml = write(tmp_path, document), write(tmp_path, document, "run.yaml")
    assert load_config(toml).resolved() == load_config(yml).resolved()


def test_a_key_that_stands_twice_is_refused_in_yaml_as_in_toml(tmp_path: Path) -> None:
    for name, text in (("a.yaml", "name: x\nname: y\n"), ("a.toml", 'name = "x"\nname = "y"\n')):
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=r"not valid (YAML|TOML)"):
            load_config(tmp_path / name)


def test_extends_lays_tables_over_tables_and_replaces_the_rest(tmp_path: Path) -> None:
    write(tmp_path, minimal(controls=["standalone"], knowledge={"top_k": 8, "top_k_mass": 0.5}), "base.toml")
    middle = {"extends": "../base.toml", "knowledge": {"top_k": 16}}
    write(tmp_path, middle, "deep/middle.toml")
    top = {
        "extends": ["deep/middle.toml"],
        "controls": ["server_public"],
        "clients": {"clinic-a": {"dtype": "float32"}},
    }
    config = load_config(write(tmp_path, top), ["knowledge.top_k=32"])
    assert (config.knowledge.top_k, config.knowledge.top_k_mass) == (32, 0.5)  # the override came last
    assert config.controls == ("server_public",)
    assert [client.dtype for client in config.clients] == ["float32", "auto"]


def test_paths_belong_to_the_file_that_states_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "far" / "tiny-model").mkdir(parents=True)
    base = minimal(server={"model": "tiny-model"})
    base["clients"][0]["model"] = "./other"
    write(tmp_path, base, "far/base.toml")
    file = write(tmp_path, {"extends": "../far/base.toml", "public": {"path": "near.jsonl"}}, "near/run.toml")
    monkeypatch.chdir(tmp_path)
    config = load_config(file, ["clients.clinic-b.data.path=here.jsonl"])
    assert config.server.model == str(tmp_path / "far" / "tiny-model")  # a folder that is there
    assert config.clients[0].model == str(tmp_path / "far" / "other")
    assert config.clients[1].model == "org/slm"  # a hub name
    assert config.public.path == (str(tmp_path / "near" / "near.jsonl"),)
    assert config.clients[0].data is not None
    assert config.clients[0].data.path == (str(tmp_path / "far" / "a.jsonl"),)
    assert config.clients[1].data is not None
    assert config.clients[1].data.path == (str(tmp_path / "here.jsonl"),)  # typed: the working directory


def test_the_root_of_the_data_is_one_override_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, minimal(public={"path": "{data.root}/p.jsonl"}))
    assert load_config(file, ["data.root=/elsewhere"]).public.path == ("/elsewhere/p.jsonl",)
    monkeypatch.setenv("FEDTANDEM_SHARED", "/from/environment")
    assert load_config(file).public.path == ("/from/environment/p.jsonl",)
    monkeypatch.delenv("FEDTANDEM_SHARED")
    monkeypatch.chdir(tmp_path)
    assert load_config(file).public.path == (str(tmp_path.parent / "shared" / "p.jsonl"),)


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"extends": "nosuch.toml"}, r"extends 'nosuch.toml', but there is no file .*nosuch.toml"),
        ({"extends": "run.toml"}, "in a circle"),
        ({"extends": 3}, "must be a file name"),
        ({"extends": "recipe:nosuch"}, "no recipe 'nosuch'"),
    ],
)
def test_what_cannot_be_extended_is_named(tmp_path: Path, document: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(write(tmp_path, document))


def test_another_ending_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"ends in \.toml, \.yaml or \.yml"):
        load_config(tmp_path / "run.json")


# -- overrides ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("server.tuning.learning_rate=1e-4", lambda c: c.server.tuning.learning_rate, 1e-4),
        ("clients.clinic-b.tuning.max_steps=7", lambda c: [x.tuning.max_steps for x in c.clients], [-1, 7]),
        ("clients.1.tuning.max_steps=7", lambda c: [x.tuning.max_steps for x in c.clients], [-1, 7]),
        ("clients.*.tuning.max_steps=7", lambda c: [x.tuning.max_steps for x in c.clients], [7, 7]),
        (
            "server.tuning.peft.target_modules=all-linear",
            lambda c: c.server.tuning.peft["target_modules"],
            "all-linear",
        ),
        ("server.tuning.peft.r=4", lambda c: c.server.tuning.peft["r"], 4),
        ("server.revision=2024", lambda c: c.server.revision, "2024"),
        ("server.torch_dtype=bfloat16", lambda c: c.server.dtype, "bfloat16"),
        ('controls=["standalone"]', lambda c: c.controls, ("standalone",)),
        ("num_threads=null", lambda c: c.num_threads, None),
        ("public.labelled=false", lambda c: c.public.labelled, False),
        ('public.separator="=>"', lambda c: c.public.separator, "=>"),
    ],
)
def test_an_override_reaches_its_key(tmp_path: Path, override: str, read: Any, value: Any) -> None:
    assert read(load_config(write(tmp_path, minimal(num_threads=2)), [override])) == value


def test_overrides_of_python_are_those_of_the_command_line(tmp_path: Path) -> None:
    file = write(tmp_path, minimal())
    typed = load_config(file, ["seed=5", "clients.clinic-a.dtype=float32"])
    assert typed.resolved() == load_config(file, {"seed": 5, "clients.clinic-a.dtype": "float32"}).resolved()
    assert (
        typed.resolved()
        == with_overrides(load_config(file), {"seed": 5, "clients.clinic-a.dtype": "float32"}).resolved()
    )


def test_an_argument_without_a_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not of the form key=value"):
        load_config(write(tmp_path, minimal()), ["seed"])


# -- faults ------------------------------------------------------------------------------------------------------


def test_all_faults_are_told_at_once_with_path_value_and_remedy(tmp_path: Path) -> None:
    document = minimal(
        server={"model": "org/llm", "dtype": "fp12", "tuning": {"learnin_rate": 1e-3}},
        public={"path": "p.jsonl", "top_k": 3},
        distillation={"temperature": -1},
        federation={"min_clients": 9},
        knowlege={"top_k": 4},
        algorithm="fedmtk",
    )
    document["clients"][1]["name"] = "clinic-a"
    document["clients"][1]["data"]["path"] = ["b.jsonl", 3]
    lines = faults(tmp_path, document, ["clients.clinc-a.dtype=auto", "selection.marginn=3"])
    expected = [
        ('clients.clinc-a.dtype = "auto"', 'did you mean "clinic-a"?'),
        ('selection.marginn = "3"', 'did you mean "margin"?'),
        ('server.dtype = "fp12"', '"auto", "float32", "bfloat16" or "float16"'),
        ("server.tuning.learnin_rate = 0.001", 'did you mean "learning_rate"?'),
        ("clients.clinic-a.data.path.1 = 3", "string"),
        ("public.top_k = 3", 'it belongs at "knowledge.top_k"'),
        ("distillation.temperature = -1", "must be greater than 0"),
        ("knowlege", 'did you mean "knowledge"?'),
        ('algorithm = "fedmtk"', '"fedmkt"'),
        ('clients.clinic-a.name = "clinic-a"', "names must be unique"),
        ("federation.min_clients = 9", "only 2 of 2 clients are asked"),
    ]
    for where, says in expected:
        assert [line for line in lines if line.startswith(where) and says in line], (where, lines)
    assert len(lines) == len(expected)


def test_a_missing_key_says_what_it_is_for(tmp_path: Path) -> None:
    document = minimal()
    del document["public"], document["clients"][0]["name"]
    lines = faults(tmp_path, document)
    assert any(line.startswith("public: is missing") for line in lines)
    assert any(line.startswith("clients.0.name: is missing (Unique;") for line in lines)


CHAINS = {"path": "embedded:chains"}
CLIENT = {"name": "c", "model": "org/slm", "data": {"path": "a.jsonl"}}


@pytest.mark.parametrize(
    ("change", "where", "says"),
    [
        ({"clients": []}, "clients", "at least 1 item"),
        ({"clients": [{**CLIENT, "name": "Clinic A"}]}, "clients.Clinic A.name", "match pattern"),
        ({"clients": [{**CLIENT, "name": "server"}]}, "clients.server.name", "kept for the program"),
        (
            {"clients": [{"name": "c", "model": "m"}]},
            "clients.c.data",
            "fedmkt tunes clients on private data",
        ),
        (
            {"clients": [{**CLIENT, "data": {"path": "a", "labelled": False}}]},
            "clients.c.data.labelled",
            "need answers",
        ),
        (
            {"clients": [CLIENT, {**CLIENT, "name": "d", "model": "other"}], "controls": ["fedavg"]},
            "clients.d.model",
            "fedavg averages weights",
        ),
        (
            {
                "clients": [CLIENT, {**CLIENT, "name": "d", "tuning": {"peft": {"r": 4}}}],
                "federation": {"aggregate_every": 1},
            },
            "clients.d.tuning",
            "aggregate_every averages weights",
        ),
        ({"server": {}}, "server", "no model"),
        ({"server": {"model": "m", "scratch": {"data": {"path": "a"}}}}, "server", "keep one of the two"),
        (
            {"server": {"model": "m", "load_in_4bit": True, "tuning": {"method": "full"}}},
            "server",
            "load_in_4bit",
        ),
        (
            {"server": {"scratch": {"data": {"path": "a"}, "hidden_size": 50, "num_attention_heads": 3}}},
            "server.scratch",
            "shared evenly",
        ),
        ({"public": {}}, "public", "exactly one of"),
        ({"public": {"path": "a", "name": "b"}}, "public", "exactly one of"),
        ({"public": CHAINS}, "public", "belong together"),
        ({"public": {**CHAINS, "chains": {"operators": "+%"}}}, "public.chains", "unknown operators %"),
        ({"public": {**CHAINS, "chains": {"steps": [0]}}}, "public.chains", "at least one step"),
        (
            {"public": {"path": "a", "partition": {"kind": "iid", "parts": 2, "index": 2}}},
            "public.partition",
            "use 0 to 1",
        ),
        (
            {"public": {"path": "a", "partition": {"kind": "field", "parts": 2, "index": 1}}},
            "public.partition",
            "column",
        ),
        ({"public": {"path": "a", "window_bytes": 10, "prompt_bytes": 10}}, "public", "must be less than"),
        (
            {"public": {"path": "a", "format": "text", "labelled": False}},
            "public.prompt_bytes",
            "needs prompts",
        ),
        (
            {"public": {"path": "a", "labelled": False}, "knowledge": {"positions": "all"}},
            "knowledge.positions",
            "answer",
        ),
        (
            {"distillation": {"replay_fraction_server": 0.5}},
            "distillation.replay_fraction_server",
            "give it a data table",
        ),
        ({"distillation": {"replay_fraction": 1.0}}, "distillation.replay_fraction", "less than 1"),
        ({"selection": {"teacher": "best"}}, "selection.teacher", "package.module:function"),
        ({"selection": {"selector": "confident-gap"}}, "selection.selector", 'did you mean "confident_gap"?'),
        ({"selection": {"budget": 0}}, "selection.budget", "a count of 1 or more"),
        ({"selection": {"budget": 1.5}}, "selection.budget", "a share above 0 and at most 1.0"),
        (
            {"evaluation": {"sets": [{"name": "t", "metric": "bleu", "data": {"path": "a"}}]}},
            "evaluation.sets.t.metric",
            "exact_match",
        ),
        (
            {
                "evaluation": {
                    "sets": [
                        {"name": "t", "metric": "accuracy", "parties": ["clinic-z"], "data": {"path": "a"}}
                    ]
                }
            },
            "evaluation.sets.t.parties",
            "no such party",
        ),
        (
            {"evaluation": {"sets": {"t": {"metric": "accuracy", "data": {"path": "a", "labelled": False}}}}},
            "evaluation.sets.t.data.labelled",
            "needs answers",
        ),
        (
            {"federation": {"fraction_train": 0.5, "min_clients": 2}},
            "federation.min_clients",
            "could never be met",
        ),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"server": "gpt2"}, "server", "table"),
        ({"knowledge": 3}, "knowledge", "table"),
    ],
)
def test_each_fault_names_its_place(tmp_path: Path, change: dict[str, Any], where: str, says: str) -> None:
    lines = faults(tmp_path, minimal(**change))
    assert len(lines) == 1
    assert lines[0].split(":")[0].split(" = ")[0] == where
    assert says in lines[0]


def test_a_public_only_method_needs_no_private_data(tmp_path: Path) -> None:
    document = minimal(algorithm="server_public", controls=["zero_shot"])
    for client in document["clients"]:
        del client["data"]
    assert load_config(write(tmp_path, document)).methods == ("server_public", "zero_shot")


KEYS = sorted({path.rpartition(".")[2] for path in leaves(RunConfig)})


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="."), min_size=1, max_size=12),
    st.sampled_from(KEYS),
)
def test_an_unknown_key_is_never_accepted_nor_a_crash(junk: str, key: str) -> None:
    from fedtandem.config.validate import validated

    for unknown in (junk, f"{key}{junk}"):
        document = minimal(**{unknown: 1})
        if unknown in RunConfig.model_fields:
            continue
        config, found = validated(RunConfig, document)
        assert config is None
        assert [fault.path for fault in found] == [unknown]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=True) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(RunConfig.model_fields)), json_values)
def test_any_value_anywhere_gives_a_config_or_a_config_error(section: str, value: Any) -> None:
    from fedtandem.config.load import _build

    document = minimal(**{section: value})
    try:
        config = _build(RunConfig, document, "a file")
    except ConfigError:
        return
    assert load_resolved(config.resolved()).resolved() == config.resolved()


# -- what is recorded --------------------------------------------------------------------------------------------


def test_a_resolved_config_reads_back_equal(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, minimal(server={"scratch": {"data": {"path": "x.jsonl"}}}, seed=7)))
    again = load_resolved(config.resolved())
    assert again.resolved() == config.resolved()
    assert again.hash == config.hash


def test_the_hash_follows_what_changes_results_and_nothing_else(tmp_path: Path) -> None:
    document = minimal(public={"path": "{data.root}/p.jsonl"})
    file = write(tmp_path, document)
    base = load_config(file, ["data.root=/one"]).hash
    same = (["data.root=/two"], ["data.root=/one", "num_threads=2"], ["data.root=/one", "report.enabled=false"],
            ["data.root=/one", "federation.keep_models=false"])  # fmt: skip
    for overrides in same:
        assert load_config(file, overrides).hash == base
    for changed in (
        "seed=1",
        "federation.num_rounds=4",
        "server.tuning.learning_rate=1e-3",
        "controls=['standalone']",
    ):
        assert load_config(file, ["data.root=/one", changed]).hash != base


def test_open_seeds_follow_the_run_and_stated_ones_do_not(tmp_path: Path) -> None:
    chains = {"path": "embedded:chains", "chains": {"operators": "+"}}
    stated = {"path": "embedded:chains", "chains": {"operators": "+", "seed": 11, "table_seed": 12}}
    document = minimal(public=chains)
    document["clients"][0]["data"] = chains
    document["clients"][1]["data"] = stated
    file = write(tmp_path, document)

    def seeds(config: RunConfig) -> list[tuple[int | None, int | None]]:
        sets = [config.public, config.clients[0].data, config.clients[1].data]
        return [
            (one.chains.seed, one.chains.table_seed)
            for one in sets
            if one is not None and one.chains is not None
        ]

    zero, one = seeds(load_config(file)), seeds(load_config(file, ["seed=1"]))
    assert zero[0][0] != zero[1][0]  # no two sets hold the same prompts
    assert zero[0][1] == zero[1][1] == 0  # but one table
    assert one[0][0] != zero[0][0]
    assert one[0][1] == 1
    assert zero[2] == one[2] == (11, 12)
    assert seeds(with_overrides(load_config(file), {"seed": 1})) == one


# -- studies -----------------------------------------------------------------------------------------------------


def study_document(**study: Any) -> dict[str, Any]:
    return minimal(
        controls=["standalone"], study={"methods": ["fedmkt", "standalone_public"], "seeds": [0, 1], **study}
    )


def test_a_cell_is_the_file_with_its_row_and_seed(tmp_path: Path) -> None:
    arms = [
        {"name": "k8", "method": "fedmkt", "overrides": {"knowledge.top_k": 8, "alignment.mode": "mined"}}
    ]
    study = load_study(
        write(tmp_path, study_document(arms=arms, control={"default": "standalone_public", "k8": "fedmkt"}))
    )
    assert study.study.rows == ("fedmkt", "standalone_public", "k8")
    assert [study.study.controls_of(row) for row in study.study.rows] == [
        ("standalone_public",),
        (),
        ("fedmkt",),
    ]
    cell = cell_config(study, "k8", 1)
    assert (cell.algorithm, cell.controls, cell.seed, cell.knowledge.top_k) == ("fedmkt", (), 1, 8)
    assert cell.alignment.mode == "mined"
    assert type(cell) is RunConfig
    with pytest.raises(ConfigError, match="no row 'k9'"):
        cell_config(study, "k9", 0)


@pytest.mark.parametrize(
    ("study", "says"),
    [
        ({"methods": []}, "names no rows"),
        ({"seeds": [1, 1]}, "named twice"),
        ({"control": "centralised"}, "centralised is named but is no row"),
        ({"arms": [{"name": "fedmkt", "method": "fedmkt"}]}, "same name"),
        ({"control": {"k9": "fedmkt"}}, "k9"),
        ({"arms": [{"name": "k", "method": "fedmkt", "override": {}}]}, 'did you mean "overrides"'),
    ],
)
def test_a_study_that_cannot_be_carried_out_is_refused(
    tmp_path: Path, study: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        load_study(write(tmp_path, study_document(**study)))


def test_an_arm_with_a_wrong_key_is_named(tmp_path: Path) -> None:
    arms = [{"name": "k", "method": "fedmkt", "overrides": {"knowledge.topk": 8}}]
    study = load_study(write(tmp_path, study_document(arms=arms)))
    with pytest.raises(ConfigError, match=r"(?s)study row 'k'.*did you mean \"top_k\""):
        cell_config(study, "k", 0)


def test_a_study_is_not_run_by_mistake(tmp_path: Path) -> None:
    file = write(tmp_path, study_document())
    with pytest.raises(ConfigError, match="fedtandem study"):
        load_config(file)
    assert type(load_either(file)).__name__ == "StudyConfig"
    assert type(load_either(write(tmp_path, minimal(), "other.toml"))) is RunConfig


def test_every_key_is_read_by_somebody() -> None:
    """A key that changes nothing would be a promise that is not kept."""
    from pathlib import Path as File

    import fedtandem

    package = File(fedtandem.__file__).parent
    read = "\n".join(file.read_text(encoding="utf-8") for file in package.rglob("*.py"))
    for section in ("federation", "knowledge", "distillation", "selection", "evaluation", "alignment"):
        inner = shape_of(RunConfig, section).section
        assert inner is not None
        for key in inner.model_fields:
            # Read as an attribute, or through the method that knows the mode's default.
            assert f".{key}" in read or f".{key}_for(" in read, f"{section}.{key}"
