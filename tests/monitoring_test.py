"""Rules, runbooks and dashboards of deploy/: they are what their generators write, they name metrics that exist, each alert is
tested and has a runbook. Where promtool is installed (Debian: prometheus), the rules are checked and tested with it.
"""

import copy
import json
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROMETHEUS, GRAFANA, RUNBOOKS = ROOT / "deploy" / "prometheus", ROOT / "deploy" / "grafana", ROOT / "docs" / "runbooks"
sys.path[:0] = [str(PROMETHEUS), str(GRAFANA)]

import make_dashboards  # noqa: E402
import make_rules  # noqa: E402

METRIC = re.compile(r"(?<![\w:])(?:assay|grpc_server|process)_[a-z0-9_]+")
RATE = re.compile(r"\b(?:rate|irate|increase|changes|delta)\([^()\[]*(?:\{[^}]*\})?\[([^\]]*)\]")
VARIABLES = {"datasource", "job", "instance", "model", "version"}
RUNBOOK_SECTIONS = ["What it means", "What the user sees", "How to look", "What to do", "When it clears"]


def alerts():
    return [alert for *_, group in make_rules.groups(make_rules.parse()) for alert in group]


def records():
    return dict(record for _, _, group, _ in make_rules.groups(make_rules.parse()) for record in group)


def dashboards():
    return {path.name: json.loads(path.read_text()) for path in sorted(GRAFANA.glob("*.json"))}


def documented(text):
    """Names of the table in docs/operations.md, section Metrics; `a_{b,c}_d` is two of them, `a_*` a prefix."""
    rows = re.search(r"^## Metrics\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)[1]
    names = set()
    for name in re.findall(r"`([a-z0-9_{},*]+)`", "\n".join(line.split("|")[1] for line in rows.splitlines() if line[:1] == "|")):
        choice = re.search(r"\{([^}]*)\}", name)
        names |= {name.replace(choice[0], one) for one in choice[1].split(",")} if choice else {name}
    return names


def unknown_metrics(exprs, names):
    prefixes = tuple(name[:-1] for name in names if name.endswith("*"))
    found = set()
    for used in {metric for expr in exprs for metric in METRIC.findall(re.sub(r'"[^"]*"', '""', expr))}:
        if used not in names and re.sub(r"_(bucket|sum|count)$", "", used) not in names and not used.startswith(prefixes or "\0"):
            found.add(used)
    return sorted(found)


def overlaps(panels):
    found = []
    for i, one in enumerate(panels):
        a = one["gridPos"]
        if a["x"] < 0 or a["x"] + a["w"] > 24 or a["w"] < 1 or a["h"] < 1:
            found.append(f"{one['title']} leaves the grid")
        for other in panels[:i]:
            b = other["gridPos"]
            if a["x"] < b["x"] + b["w"] and b["x"] < a["x"] + a["w"] and a["y"] < b["y"] + b["h"] and b["y"] < a["y"] + a["h"]:
                found.append(f"{one['title']} overlaps {other['title']}")
    return found


def panel_problems(panel):
    found = []
    if panel["type"] == "row":
        return found
    for key in ("title", "description"):
        if not panel.get(key):
            found.append(f"no {key}")
    if not panel["fieldConfig"]["defaults"].get("unit"):
        found.append("no unit")
    if not panel["targets"]:
        found.append("asks nothing")
    for part in (panel, *panel["targets"]):
        if part["datasource"] != {"type": "prometheus", "uid": "${datasource}"}:
            found.append("another data source")
    for target in panel["targets"]:
        expr = target["expr"]
        found += [f"[{window}] is not [$__rate_interval]" for window in RATE.findall(expr) if window != "$__rate_interval"]
        if "model=~" not in expr and "instance=~" not in expr and "ALERTS" not in expr:
            found.append("ignores the variables")
    return [f"{panel.get('title')}: {problem}" for problem in found]


def dashboard_problems(board):
    found = [f"has {key}" for key in ("id", "__inputs", "__requires") if key in board]
    found += [f"no {key}" for key in ("uid", "title", "description", "panels") if not board.get(key)]
    if board["schemaVersion"] < 39 or board["editable"] is not False:
        found.append("schemaVersion below 39, or editable")
    if {variable["name"] for variable in board["templating"]["list"]} != VARIABLES:
        found.append("other variables")
    if not all(one.get("expr") for one in board["annotations"]["list"]) or not board["annotations"]["list"]:
        found.append("no annotations")
    ids = [panel["id"] for panel in board["panels"]]
    if len(set(ids)) != len(ids):
        found.append("the id of a panel is not its own")
    return found + overlaps(board["panels"]) + [problem for panel in board["panels"] for problem in panel_problems(panel)]


def cases(text):
    """[(alert, whether it is expected to fire)] of a promtool test file."""
    return [(name, empty != " []") for name, empty in re.findall(r"alertname: (\w+)\n +exp_alerts:( \[\])?", text)]


def test_rules_and_dashboards_are_what_their_generators_write():
    assert make_rules.OUTPUT.read_text() == make_rules.rules_text(make_rules.parse())
    assert {name: (GRAFANA / name).read_text() for name in make_dashboards.files()} == make_dashboards.files()
    assert set(dashboards()) == set(make_dashboards.files())


def test_scaled_rules_keep_their_names_and_shrink_their_windows():
    text = make_rules.rules_text(make_rules.parse(["--scale", "0.01"]))
    assert "model:assay_slo_latency:error_ratio_rate1h" in text and "[36000ms]" in text and "[1h]" not in text
    assert re.findall(r"(?:record|alert): (\S+)", text) == re.findall(r"(?:record|alert): (\S+)", make_rules.OUTPUT.read_text())


@pytest.mark.parametrize("name", sorted(make_dashboards.files()))
def test_dashboard_is_sound(name):
    assert dashboard_problems(dashboards()[name]) == []


def test_dashboards_have_their_own_uids():
    assert len({board["uid"] for board in dashboards().values()}) == len(dashboards()) == 5


def test_every_metric_is_documented():
    names = documented((ROOT / "docs" / "operations.md").read_text())
    exprs = [*records().values(), *(alert.expr for alert in alerts())]
    for board in dashboards().values():
        exprs += [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
        exprs += [one["expr"] for one in board["annotations"]["list"]]
        exprs += [variable["definition"] for variable in board["templating"]["list"] if "definition" in variable]
    exprs += [code for path in RUNBOOKS.glob("*.md") for code in re.findall(r"`([^`]+)`", path.read_text())]
    assert unknown_metrics(exprs, names) == []


def test_every_record_that_is_read_is_written():
    exprs = [alert.expr for alert in alerts()]
    for board in dashboards().values():
        exprs += [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    assert {record for expr in exprs for record in re.findall(r"model:assay_slo_\w+:\w+", expr)} <= set(records())


def test_every_alert_has_a_runbook_and_every_runbook_an_alert():
    urls = re.findall(r'runbook_url: "(.*)"', make_rules.OUTPUT.read_text())
    assert sorted(urls) == sorted(f"docs/runbooks/{alert.name}.md" for alert in alerts())
    assert {ROOT / url for url in urls} == set(RUNBOOKS.glob("*.md"))
    for alert in alerts():
        text = (RUNBOOKS / f"{alert.name}.md").read_text()
        assert text.startswith(f"# {alert.name}\n{alert.severity.capitalize()}. Fires ")
        assert re.findall(r"^## (.*)", text, re.MULTILINE) == RUNBOOK_SECTIONS
        assert alert.summary and alert.description and alert.severity in ("page", "ticket")


def test_every_alert_is_tested_firing_and_silent():
    tested = {case for path in (PROMETHEUS / "tests").glob("*.yml") for case in cases(path.read_text())}
    assert tested == {(alert.name, fires) for alert in alerts() for fires in (True, False)}


def promtool(*arguments):
    if not shutil.which("promtool"):
        pytest.skip("NOT RUN: promtool is not installed (Debian: apt-get install prometheus); rules are not tested")
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_rules_and_the_example():
    promtool("check", "rules", make_rules.OUTPUT)
    promtool("check", "config", PROMETHEUS / "prometheus.example.yml")


@pytest.mark.parametrize("path", sorted((PROMETHEUS / "tests").glob("*.yml")), ids=lambda path: path.stem)
def test_promtool_tests_the_rules(path):
    promtool("test", "rules", path)


def test_catches_a_panel_that_overlaps_and_one_that_leaves_the_grid():
    board = copy.deepcopy(dashboards()["overview.json"])
    board["panels"][1]["gridPos"]["x"] -= 1
    assert overlaps(board["panels"]) == ["Accurate? overlaps Serving?"]
    board["panels"][1]["gridPos"]["x"] = 23
    assert "Accurate? leaves the grid" in overlaps(board["panels"])


def test_catches_a_panel_without_unit_and_with_a_fixed_window():
    panel = copy.deepcopy(dashboards()["serving.json"]["panels"][1])
    panel["fieldConfig"]["defaults"]["unit"] = ""
    panel["targets"][0]["expr"] = panel["targets"][0]["expr"].replace("$__rate_interval", "5m")
    assert panel_problems(panel) == ["Requests by outcome: no unit", "Requests by outcome: [5m] is not [$__rate_interval]"]


def test_catches_a_metric_that_does_not_exist():
    names = documented("## Metrics\n| metric | x |\n| `assay_a_total`, `assay_b_{sent,got}_seconds`, `process_*` | |\n## End\n")
    assert names == {"assay_a_total", "assay_b_sent_seconds", "assay_b_got_seconds", "process_*"}
    exprs = ['rate(assay_a_total{x="assay_d"}[5m]) + model:assay_c:y', "assay_b_got_seconds_bucket", "process_x + assay_a_totals"]
    assert unknown_metrics(exprs, names) == ["assay_a_totals"]


def test_catches_an_alert_that_is_not_tested():
    text = "  - eval_time: 1m\n    alertname: A\n    exp_alerts: []\n    alertname: A\n    exp_alerts:\n    - x\n"
    assert cases(text) == [("A", False), ("A", True)]
