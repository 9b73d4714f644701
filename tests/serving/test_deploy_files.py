"""The files for three hosts: what they start exists, listens where they say, and answers their health check."""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics_core import Metric

from fedtandem.config.serve import ServeConfig, load_serve
from fedtandem.serving import flags
from fedtandem.serving.metrics import CloudMetrics, DeviceMetrics, EdgeMetrics

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
TIERS = ("device", "edge", "cloud")


def typed(words: list[str]) -> ServeConfig:
    """What `fedtandem WORDS` would serve, with this folder's config."""
    assert words.pop(0) == "serve"
    parser = argparse.ArgumentParser()
    flags.add(parser)
    arguments = parser.parse_args(words)
    return load_serve(DEPLOY / arguments.file.name, arguments.overrides)


def test_each_service_of_compose_serves_its_tier_and_little_else() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert set(services) == set(TIERS)
    for tier, service in services.items():
        filled = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in service["command"]]
        assert filled[1] == tier
        config = typed(filled)
        port = getattr(config, tier).port
        assert service["environment"]["FEDTANDEM_PORT"] == str(port)
        assert [text.rpartition(":")[2] for text in service["ports"]] == [str(port)]
        assert service["profiles"] == [tier]
        assert service["user"].split(":")[0] == "10001"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert config.security.keys is not None
        assert config.security.certificate is not None
        assert int(service["stop_grace_period"].removesuffix("s")) > config.limits.shutdown_s
    assert services["device"]["ports"][0].startswith("127.0.0.1:")


def test_kubernetes_serves_the_same_and_as_nobody(tmp_path: Path) -> None:
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for document in documents:
        by_kind.setdefault(document["kind"], []).append(document)
    (shared,) = by_kind["ConfigMap"]
    (tmp_path / "serve.toml").write_text(shared["data"]["serve.toml"])
    config = load_serve(tmp_path / "serve.toml")
    ports = {
        document["metadata"]["name"]: document["spec"]["ports"][0]["port"] for document in by_kind["Service"]
    }
    assert ports == {f"fedtandem-{tier}": getattr(config, tier).port for tier in TIERS}
    for tier, upstream in (("device", "edge"), ("edge", "cloud")):
        assert (
            getattr(config, tier).upstream == f"https://fedtandem-{upstream}:{ports[f'fedtandem-{upstream}']}"
        )
    for document in by_kind["Deployment"]:
        pod = document["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert container["args"][:2] == ["serve", container["name"]]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert pod["terminationGracePeriodSeconds"] > config.limits.shutdown_s
        assert {container[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe")} == {
            "/healthz",
            "/readyz",
        }


def test_the_dashboard_reads_metrics_that_exist() -> None:
    names: set[str] = set()
    for metrics in (CloudMetrics(), EdgeMetrics(), DeviceMetrics()):
        for family in metrics.registry.collect():
            assert isinstance(family, Metric)
            suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(
                family.type, ("",)
            )
            names |= {family.name + suffix for suffix in suffixes}
    board = json.loads((DEPLOY / "grafana.json").read_text())
    read = {
        name
        for panel in board["panels"]
        for target in panel["targets"]
        for name in re.findall(r"([a-z_]+)\{", target["expr"])
    }
    assert len(read) >= 12
    assert read <= names


def test_the_health_check_sees_a_tier_and_its_absence(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def health(port: str) -> int:
        monkeypatch.setenv("FEDTANDEM_PORT", port)
        return subprocess.run([sys.executable, str(DEPLOY / "health.py")], check=False, timeout=60).returncode

    with lab.running() as tiers:
        port = tiers.urls["cloud"].rpartition(":")[2]
        assert health(port) == 0
    assert health(port) == 1
