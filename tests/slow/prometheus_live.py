"""Rules and dashboards against a real Prometheus that scrapes the real server under load: six minutes, `make live-rules`.

usage: prometheus_live.py [--without-drift] [--drift-stand-in] [--only-healthy] [--record FILE]  (ASSAY_BUILD_DIR: default build/dev)

Healthy traffic first: every query of every panel and every recording rule must return data, every scrape must take less than
100 ms, no alert may fire, and a traced request must be found among the exemplars. Then faults, with the windows of the rules scaled down to a hundredth (an hour is 36 seconds): each
alert must fire and clear again. --without-drift: the server does not watch drift, what asks for it may be empty.
--drift-stand-in: after the healthy part this program serves the series of one more model, whose drift it makes up, so that
the drift alerts fire and clear, too. --record FILE: in the end, what each panel has to show of the whole run, for
deploy/grafana/draw_panels.py.
Wants Prometheus (Debian: `apt-get install prometheus`) and the environment of scripts/setup.
"""

import argparse
import json
import math
import pathlib
import random
import re
import resource
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import grpc
import numpy
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests" / "e2e"), str(ROOT / "deploy" / "prometheus")]
import make_rules  # noqa: E402
from drift_stand_in import DriftStandIn  # noqa: E402
from conftest import BUILD, Assay, Server, clean_environment, make_repository, wait_until  # noqa: E402

MODEL = "stories260k"
SCALE = 0.01
HEALTHY_SECONDS = 30
MOST_SCRAPE_SECONDS = 0.1
# A cache of 1020 positions for at most 16 sequences: ample for the healthy load, soon full under the burst.
LIMITS = ("--engine-max-sequences", 16, "--engine-max-queue", 16, "--engine-kv-cache", "1MiB")
WATCHED = ("--drift-rate", 1, "--drift-cpu-share", 0.1)
DRIFT_ALERTS = {"AssayDriftViolated", "AssayDriftScoreAboveThreshold", "AssayDriftEvaluationStale", "AssayInputShifted", "AssayAccuracyFastBurn",
                "AssayAccuracySlowBurn"}
PROMETHEUS = """
global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}
rule_files: [rules.yml]
scrape_configs:
- job_name: assay
  file_sd_configs: [{{files: [server.json], refresh_interval: 1s}}]
- job_name: stand-in
  file_sd_configs: [{{files: [stand_in.json], refresh_interval: 1s}}]
  metric_relabel_configs:
  - {{target_label: job, replacement: assay}}
  - {{target_label: instance, replacement: server}}
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def say(text):
    print(f"{time.monotonic() - BEGAN:6.1f} s  {text}", flush=True)


def point_at(folder, name, address):
    """What Prometheus scrapes. The instance is called `server` whatever its port: its series go on after a restart."""
    path = folder / f"{name}.json"
    path.with_suffix(".new").write_text(json.dumps([{"targets": [address], "labels": {"instance": "server"}}]))
    path.with_suffix(".new").rename(path)


class Prometheus:
    """Scrapes what point_at() names, every second."""

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        (folder / "prometheus.yml").write_text(PROMETHEUS.format())
        (folder / "rules.yml").write_text(make_rules.rules_text(make_rules.parse(["--scale", str(SCALE)])))
        self.log = (folder / "prometheus.log").open("w")
        self.process = subprocess.Popen(
            [shutil.which("prometheus"), f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
             f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=warn", "--enable-feature=exemplar-storage"],
            stdout=self.log, stderr=self.log)
        try:
            wait_until(self._answers)
        except BaseException:
            self.stop()
            raise

    def _answers(self):
        assert self.process.poll() is None, (self.folder / "prometheus.log").read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=10):
                return True
        except OSError:
            return False

    def get(self, path, **parameters):
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def query(self, expr):
        return self.get("query", query=expr)["result"]

    def value(self, expr):
        return float(self.query(expr)[0]["value"][1])

    def rows(self, expr, instant, seconds, step=1):
        """[{"metric": labels, "values": [[time, value], ...]}, ...] of the last seconds, or of now."""
        if instant:
            return [{"metric": row["metric"], "values": [row["value"]]} for row in self.query(expr)]
        now = time.time()
        return self.get("query_range", query=expr, start=now - seconds, end=now, step=step)["result"]

    def has_data(self, expr, instant):
        return any(not math.isnan(float(value)) for row in self.rows(expr, instant, 20) for _, value in row["values"])

    def traces(self, metric, seconds=60):
        """Trace ids among the exemplars of a histogram."""
        now = time.time()
        found = self.get("query_exemplars", query=f"{metric}_bucket", start=now - seconds, end=now + 1)
        return {exemplar["labels"]["trace_id"] for series in found for exemplar in series["exemplars"]}

    def stop(self):
        self.process.terminate()
        self.process.wait(30)
        self.log.close()


class Watch:
    """Remembers when each alert fired first and when it was last seen."""

    def __init__(self, prometheus):
        self.prometheus, self.first, self.last, self.now = prometheus, {}, {}, set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._stop.wait(0.5):
            self.now = {a["labels"]["alertname"] for a in self.prometheus.get("alerts")["alerts"] if a["state"] == "firing"}
            for name in self.now:
                if self.first.setdefault(name, time.monotonic()) and name not in self.last:
                    say(f"{name} fires")
                self.last[name] = time.monotonic()

    def until_fired(self, *names, seconds=60):
        end = time.monotonic() + seconds
        while not set(names) <= set(self.first):
            assert time.monotonic() < end, f"these should fire: {sorted(set(names) - set(self.first))}"
            time.sleep(0.2)

    def until_clear(self, *names, seconds=60):
        end = time.monotonic() + seconds
        while self.now & set(names):
            assert time.monotonic() < end, f"these should clear: {sorted(self.now & set(names))}"
            time.sleep(0.2)
        say(f"clear: {' '.join(sorted(names))}")

    def stop(self):
        self._stop.set()
        self._thread.join()


class Load:
    """Clients of the server that is there at the moment; what goes wrong is the server's business to count."""

    def __init__(self, address, clients, pause=0):
        self.address, self.pause, self.answers = address, pause, 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self, number):
        rng, assay, at = random.Random(number), None, None
        while not self._stop.is_set():
            try:
                if at != self.address():
                    at = self.address()
                    assay = Assay(at)
                self._request(assay, rng)
                self.answers += 1
            except (grpc.RpcError, KeyError, AttributeError):  # the address of a server that has not said it yet
                time.sleep(0.05)
            self._stop.wait(self.pause)

    def _request(self, assay, rng):
        prompt = "Once upon a time there was a little girl called Lily, who liked to play " + rng.choice(["outside", "inside"])
        for _ in assay.generate(prompt, model=MODEL, max_tokens=40, ignore_eos=True, timeout=30):
            pass
        assay.call("Embed", assay.message("EmbedRequest", model="tiny_bert", texts=["a sentence", "another"]))

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join()


class Burst(Load):
    """Each request is 24 long texts; only 16 may run and 8 wait."""

    def _request(self, assay, rng):
        client = tritonclient.grpc.InferenceServerClient(self.address())
        texts = tritonclient.grpc.InferInput("text_input", [24], "BYTES")
        texts.set_data_from_numpy(numpy.array([f"Tom had {rng.randint(2, 99)} toys" for _ in range(24)], dtype=object))
        try:
            client.infer(MODEL, [texts], parameters={"max_tokens": 200, "ignore_eos": True})
        except InferenceServerException:
            time.sleep(0.05)
        finally:
            client.close()


def substituted(expr, values):
    for name, value in values.items():
        expr = re.sub(rf"\${name}\b", lambda _, value=value: value, expr)
    return expr


def boards(prometheus):
    """(name, dashboard, the values of its variables), all of them chosen."""
    for path in sorted((ROOT / "deploy" / "grafana").glob("*.json")):
        board = json.loads(path.read_text())
        values = {"__rate_interval": "10s"}
        for variable in board["templating"]["list"][1:]:
            selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"]).groups()
            found = {row["metric"].get(label) for row in prometheus.query(substituted(selector, values))} - {None}
            assert found, f"{path.name}: variable {variable['name']} has no values"
            values[variable["name"]] = variable.get("allValue") or "|".join(sorted(found))
        yield path.stem, board, values


def check_dashboards(prometheus, may_be_empty):
    """Counts (panels, queries); every query of every panel returns data, every variable has values."""
    panels = queries = 0
    problems = []
    for name, board, values in boards(prometheus):
        for one in board["annotations"]["list"]:
            prometheus.query(substituted(one["expr"], values))
        for panel in board["panels"]:
            panels += panel["type"] != "row"
            for target in panel.get("targets", []):
                queries += 1
                expr = substituted(target["expr"], values)
                if not prometheus.has_data(expr, target["instant"]) and not may_be_empty(expr):
                    problems.append(f"{name}: {panel['title']}: no data: {expr}")
    assert not problems, "\n".join(problems)
    return panels, queries


def record(prometheus, path):
    """Writes the dashboards with the rows of each query of each panel since the beginning."""
    seconds = time.monotonic() - BEGAN
    made = {}
    for name, board, values in boards(prometheus):
        for panel in board["panels"]:
            for target in panel.get("targets", []):
                target["rows"] = prometheus.rows(substituted(target["expr"], values), target["instant"], seconds, 2)
        made[name] = board
    path.write_text(json.dumps({"began": time.time() - seconds, "ended": time.time(), "dashboards": made}))
    say(f"recorded {len(made)} dashboards")


def check_exemplars(scene):
    """A traced request is found by its trace."""
    trace = secrets.token_hex(16)
    for _ in Assay(scene.address()).generate("Once", model=MODEL, max_tokens=5, timeout=30,
                                             metadata=[("traceparent", f"00-{trace}-{secrets.token_hex(8)}-01")]):
        pass
    for metric in ("assay_inference_request_duration_seconds", "assay_llm_time_to_first_token_seconds"):
        wait_until(lambda metric=metric: trace in scene.prometheus.traces(metric), seconds=20)
    say(f"trace {trace} is among the exemplars")


def check_recordings(prometheus, may_be_empty):
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    sick = [f"{rule['name']}: {rule['lastError']}" for rule in rules if rule["health"] != "ok"]
    assert not sick, "\n".join(sick)
    records = [rule for rule in rules if rule["type"] == "recording"]
    empty = [rule["name"] for rule in records if not prometheus.has_data(rule["name"], True) and not may_be_empty(rule["query"])]
    assert not empty, f"these records have no data: {empty}"
    return len(records)


class Scene:
    """A server that comes and goes, Prometheus, and who watches the alerts."""

    def __init__(self, folder, *flags):
        self.folder, self.flags, self.server, self.prometheus, self.watch = folder, flags, None, None, None
        self.repository = make_repository(folder)

    def open(self):
        """The alerts are watched from the first scrape on: a Prometheus that has found no server rightly raises one."""
        self.start()
        wait_until(lambda: not self.prometheus.get("alerts")["alerts"])
        self.watch = Watch(self.prometheus)

    def start(self):
        began = time.time() - 1
        self.server = Server(self.folder, "--model-repository", self.repository, "--strict-readiness", "false", *self.flags)
        self.server.wait_ready()
        point_at(self.folder, "server", f"127.0.0.1:{self.server.http_port()}")
        self.prometheus = self.prometheus or Prometheus(self.folder)
        wait_until(lambda: self.prometheus.query(f'process_start_time_seconds{{job="assay"}} > {began}'))

    def address(self):
        return self.server.address

    def assay(self, *arguments):
        return subprocess.run([BUILD / "cli" / "assay", "--server", self.address(), *map(str, arguments)], capture_output=True,
                              text=True, timeout=120, env=clean_environment(), stdin=subprocess.DEVNULL)

    def stop(self):
        for part in (self.watch, self.prometheus, self.server):
            if part:
                part.stop()


def healthy(scene, may_be_empty):
    time.sleep(HEALTHY_SECONDS)
    panels, queries = check_dashboards(scene.prometheus, may_be_empty)
    records = check_recordings(scene.prometheus, may_be_empty)
    assert scene.prometheus.value('min_over_time(up{job="assay"}[20s])') == 1
    slowest = scene.prometheus.value('max_over_time(scrape_duration_seconds{job="assay"}[1m])')
    samples = scene.prometheus.value('scrape_samples_scraped{job="assay"}')
    check_exemplars(scene)
    say(f"healthy: {panels} panels, {queries} queries and {records} records have data; slowest scrape {1000 * slowest:.1f} ms of "
        f"{samples:.0f} samples; alerts that fired: {sorted(scene.watch.first) or 'none'}")
    assert slowest < MOST_SCRAPE_SECONDS
    assert not scene.watch.first


def overload(scene):
    """Far more work than the queue and the cache hold: errors, a full queue, preemptions. Then with a quarter of the cores."""
    burst = Burst(scene.address, clients=6)
    scene.watch.until_fired("AssayQueueRejections", "AssayKvCacheSaturated", "AssayAvailabilityFastBurn",
                            "AssayAvailabilitySlowBurn", seconds=45)
    end = time.monotonic() + 45
    while not {"AssayLatencyFastBurn", "AssayLatencySlowBurn"} <= set(scene.watch.first):
        assert time.monotonic() < end, "slow answers raise no alert"
        for sent, seconds in ((signal.SIGSTOP, 0.06), (signal.SIGCONT, 0.02)):
            scene.server.process.send_signal(sent)
            time.sleep(seconds)
    burst.stop()
    say("the burst is over")


def bad_admissions(scene):
    broken = scene.folder / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    assert scene.assay("admit", broken, "--name", "broken").returncode != 0
    poor = scene.assay("admit", scene.repository / MODEL / "1", "--name", "poor", "--scheme", "int3_group")
    assert poor.returncode == 3, poor.stderr
    scene.watch.until_fired("AssayAdmissionFailed", "AssayAdmissionRejected")
    scene.watch.until_clear("AssayAdmissionFailed", "AssayAdmissionRejected")


def few_descriptors(scene):
    pid = scene.server.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    opened = scene.prometheus.value("process_open_fds")
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (int(opened / 0.85), before[1]))
    scene.watch.until_fired("AssayFileDescriptorsHigh")
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    scene.watch.until_clear("AssayFileDescriptorsHigh")


def strangers(scene):
    """What is not HTTP/2, a few a second."""
    host, port = scene.address.rsplit(":", 1)
    end = time.monotonic() + 45
    while "AssayConnectionsRefused" not in scene.watch.first:
        assert time.monotonic() < end, "refused connections raise no alert"
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        time.sleep(0.1)
    scene.watch.until_clear("AssayConnectionsRefused")


def damaged_artifact(scene):
    scene.server.terminate()
    scene.server.wait()
    for path in (scene.folder / "artifacts").rglob("weights.bin"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    scene.start()
    scene.watch.until_fired("AssayArtifactCorrupt")
    scene.watch.until_clear("AssayArtifactCorrupt")


def crashes(scene):
    scene.server.stop()
    scene.watch.until_fired("AssayTargetAbsent")
    for _ in range(3):
        scene.start()
        time.sleep(1.5)  # a scrape of this life
        scene.server.stop()
    scene.start()
    scene.watch.until_fired("AssayRestartLoop")
    scene.watch.until_clear("AssayTargetAbsent", "AssayRestartLoop")


def drifting(scene, stand_in):
    stand_in.bad = True
    scene.watch.until_fired("AssayDriftViolated", "AssayDriftScoreAboveThreshold", "AssayInputShifted", "AssayAccuracyFastBurn",
                            "AssayAccuracySlowBurn")
    stand_in.bad = False
    scene.watch.until_clear("AssayDriftViolated", "AssayDriftScoreAboveThreshold", "AssayInputShifted", "AssayAccuracyFastBurn")
    stand_in.asleep = True
    scene.watch.until_fired("AssayDriftEvaluationStale", seconds=90)
    stand_in.asleep = False
    scene.watch.until_clear("AssayDriftEvaluationStale")


def faults(scene, load, stand_in):
    overload(scene)
    if stand_in:
        drifting(scene, stand_in)
    load.pause = 1
    for fault in (bad_admissions, few_descriptors, strangers, damaged_artifact, crashes):
        fault(scene)
    say("waiting for the tickets to clear: their short windows last 6 h, here 216 s")
    scene.watch.until_clear(*scene.watch.first, seconds=260)
    wanted = {alert.name for *_, alerts in make_rules.groups(make_rules.parse()) for alert in alerts}
    wanted -= {"AssayDeviceLost", "AssayCertificateExpires"}  # there is no GPU to lose, and no TLS
    wanted -= set() if stand_in else DRIFT_ALERTS
    assert wanted <= set(scene.watch.first), f"never fired: {sorted(wanted - set(scene.watch.first))}"
    say(f"{len(wanted)} alerts fired and cleared" + ("" if stand_in else f"; not provoked: {' '.join(sorted(DRIFT_ALERTS))}"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without-drift", action="store_true", help="the server does not watch drift")
    parser.add_argument("--drift-stand-in", action="store_true", help="make up the drift of one more model")
    parser.add_argument("--only-healthy", action="store_true", help="inject no faults")
    parser.add_argument("--record", type=pathlib.Path, metavar="FILE", help="what the panels show of the run, as JSON")
    options = parser.parse_args()
    if not shutil.which("prometheus"):
        sys.exit("there is no `prometheus` here; Debian: apt-get install prometheus")
    scene = load = stand_in = None
    with tempfile.TemporaryDirectory() as folder:
        try:
            scene = Scene(pathlib.Path(folder), *LIMITS, *(() if options.without_drift else WATCHED))
            scene.open()
            load = Load(scene.address, clients=4, pause=0.1)
            healthy(scene, lambda expr: options.without_drift and "assay_drift_" in expr)
            if options.drift_stand_in and not options.only_healthy:
                stand_in = DriftStandIn()
                point_at(scene.folder, "stand_in", stand_in.address)
            if not options.only_healthy:
                faults(scene, load, stand_in)
            if options.record:
                record(scene.prometheus, options.record)
            say(f"done; {load.answers} answers to the steady clients")
        finally:
            for part in (load, scene, stand_in):
                if part:
                    part.stop()


BEGAN = time.monotonic()
if __name__ == "__main__":
    main()
