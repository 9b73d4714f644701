"""What a site is told of a run, and the run as the site sees it: the server's rules over the site's own file."""

from collections.abc import Mapping
from typing import Any

from fedtandem.config import DataConfig, PartyConfig, PublicConfig, RunConfig, load_resolved
from fedtandem.config.site import AllowConfig, SiteConfig
from fedtandem.errors import InvalidMessage

PLAN_SCHEMA = 2
"""Version of the plan; another one is refused."""
SHARED = ("alignment", "knowledge", "distillation", "selection", "privacy", "federation")
"""Sections that are the same for all parties."""
PUBLIC_RULES = (*sorted(set(PublicConfig.model_fields) - set(DataConfig.model_fields)), "labelled")
"""Of [public]: how its answers are written and checked. Where its rows lie is each party's own business."""
PLAIN = ("name", "algorithm", "seed", "num_threads")


def plan_of(config: RunConfig) -> dict[str, Any]:
    """The rules of a run, as JSON values: nothing about the server's paths, data or the other clients."""
    whole = config.resolved()
    return {
        "schema": PLAN_SCHEMA,
        **{key: whole[key] for key in (*PLAIN, *SHARED)},
        "public": {key: whole["public"][key] for key in PUBLIC_RULES},
        "evaluation": {key: whole["evaluation"][key] for key in ("every", "batch_size")},
    }


def run_at_site(plan: Mapping[str, Any], site: SiteConfig) -> RunConfig:
    """The run as one site sees it: itself the only client, its own files, the server elsewhere.

    Raises:
        InvalidMessage: the plan lacks a part or is of another schema.
        ConfigError: plan and site together cannot be carried out; names every fault.
    """
    if plan.get("schema") != PLAN_SCHEMA:
        raise InvalidMessage(
            f"the server's plan has schema {plan.get('schema')!r}, this site reads {PLAN_SCHEMA}. Install the same "
            "fedtandem version at server and sites."
        )
    missing = sorted({*PLAIN, *SHARED, "public", "evaluation"} - plan.keys())
    unknown = sorted(plan.keys() - {*PLAIN, *SHARED, "public", "evaluation", "schema"})
    if missing or unknown or sorted(plan["public"]) != sorted(PUBLIC_RULES):
        raise InvalidMessage(
            f"the server's plan lacks {', '.join(missing) or 'nothing'}, adds {', '.join(unknown) or 'nothing'}"
            ", or other rules of [public]. Install the same fedtandem version at server and sites."
        )
    alone = {"keep_models": False, "min_clients": 1, "fraction_train": 1.0, "carrier": "local"}
    tests = [{**test.model_dump(mode="json"), "parties": ["*"]} for test in site.tests]
    return load_resolved(
        {
            **{key: plan[key] for key in (*PLAIN, *SHARED)},
            "num_threads": site.num_threads or plan["num_threads"],
            "server": {"model": "elsewhere"},
            "clients": [{**site.client.model_dump(mode="json"), "name": site.name}],
            "public": {**site.public.model_dump(mode="json"), **plan["public"]},
            "federation": {**plan["federation"], **alone},
            "distillation": {**plan["distillation"], "replay_fraction_server": None},
            "evaluation": {**plan["evaluation"], "sets": tests},
            "report": {"enabled": False},
            "data": site.data.model_dump(mode="json"),
        }
    )


def site_of_client(config: RunConfig, name: str, folder: str, allow: AllowConfig) -> SiteConfig:
    """The site's file that makes a client of a run what the run's own config says of it.

    Args:
        folder: where the site keeps its states.
        allow: what it lets out.
    """
    client = next(client for client in config.clients if client.name == name)
    return SiteConfig(
        name=name,
        folder=folder,
        num_threads=config.num_threads,
        client=PartyConfig(**client.model_dump(exclude={"name"})),
        public=DataConfig(**config.public.model_dump(include=set(DataConfig.model_fields))),
        tests=tuple(test for test in config.evaluation.sets if {name, "clients", "*"} & set(test.parties)),
        allow=allow,
        data=config.data,
    )
