"""The dashboard, the alerts and their Prometheus ask for what `/metrics` has."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from dsv4.cache.disk import DiskCounts
from dsv4.engine import Engine, EngineService
from dsv4.server.accounts.metrics import HELP, Metrics
from dsv4.testing.tiny import tiny_config, tiny_model
from tests.conftest import ROOT

FOLDER = ROOT / "deploy" / "grafana"
DASHBOARD = json.loads((FOLDER / "dsv4.json").read_text(encoding="utf-8"))
ALERTS = yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
NAME = re.compile(r"\bdsv4_\w+")
PROMTOOL = shutil.which("promtool")


def expressions() -> Iterator[str]:
    """All that dashboard and alerts ask Prometheus for."""
    yield from (target["expr"] for panel in PANELS for target in panel["targets"])
    yield from (rule["expr"] for group in ALERTS["groups"] for rule in group["rules"])
    yield from (
        variable["query"]["query"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"
    )


@pytest.fixture(scope="module")
def shown() -> str:
    """The page of a server with a real engine."""
    small = tiny_config(num_hidden_layers=2, compress_ratios=(4, 128, 0), n_routed_experts=2)
    service = EngineService(Engine(tiny_model(small), context_length=256, cache_tokens=512, sequences=1))
    try:
        metrics = Metrics()
        metrics.finished["stop"] += 1
        metrics.responses["200"] += 1
        return metrics.text(0, service.counters())
    finally:
        service.close()


def test_every_metric_that_is_asked_for_is_on_the_page(shown: str) -> None:
    exported = {line.partition(" ")[0].partition("{")[0] for line in shown.splitlines() if not line.startswith("#")}
    asked = {name for expression in expressions() for name in NAME.findall(expression)}
    assert len(asked) > 20
    assert asked - exported == set()


def test_every_metric_has_a_help_line_before_its_type(shown: str) -> None:
    lines = shown.splitlines()
    typed = [at for at, line in enumerate(lines) if line.startswith("# TYPE ")]
    assert len(typed) > 30
    for at in typed:
        name = lines[at].split()[2]
        assert lines[at - 1].startswith(f"# HELP {name} "), name
        assert lines[at - 1].endswith("."), name


def test_the_help_of_metrics_names_what_exists(shown: str) -> None:
    """`shown` has neither a disk nor servers behind it: their names come from the classes that count."""
    disk = {f"engine_disk_{each.name}_total" for each in fields(DiskCounts)}
    other = {name for name in HELP if name.startswith("engine_remote_")}
    assert set(re.findall(r"^# TYPE dsv4_(\w+)", shown, re.MULTILINE)) | disk | {"engine_disk_off"} == set(HELP) - other


def test_labels_that_are_asked_for_are_on_the_page(shown: str) -> None:
    labels = {label for text in expressions() for found in re.findall(r"by \(([^)]*)\)", text) for label in [found]}
    assert labels == {"le", "finished_reason", "status"}
    assert all(f'{label}="' in shown for label in labels)


def test_panels_have_what_a_reader_needs() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"]
        assert panel["targets"]
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24, panel["title"]


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_compose_mounts_what_exists_and_listens_on_this_machine_only() -> None:
    services: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))["services"]
    mounted = {volume.split(":")[0] for service in services.values() for volume in service["volumes"]}
    local = {name for name in mounted if name.startswith("./")}
    assert len(local) == 4
    assert all((FOLDER / name).exists() for name in local)
    assert "--web.listen-address=127.0.0.1:9090" in services["prometheus"]["command"]
    assert services["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool")
def test_prometheus_accepts_configuration_and_expressions(tmp_path: Path) -> None:
    assert PROMTOOL is not None
    subprocess.run([PROMTOOL, "check", "config", str(FOLDER / "prometheus.yml")], check=True, capture_output=True)
    asked = [text.replace("$__rate_interval", "1m") for text in expressions() if "label_values" not in text]
    rules = [{"record": f"r{number}", "expr": text} for number, text in enumerate(asked)]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    done = subprocess.run([PROMTOOL, "check", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules" in done.stdout
