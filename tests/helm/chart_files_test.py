"""Files: rules and dashboards are those of deploy/, in renders and in the package; notes, the download script and the examples of
deploy/ are what they say."""

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import time
from concurrent import futures

import grpc
import pytest
import yaml
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import chart

DEPLOY = chart.ROOT / "deploy"


def deployed():
    """Name in the chart -> the file in deploy/ that it must be."""
    files = {f"files/dashboards/{path.name}": path for path in (DEPLOY / "grafana").glob("*.json")}
    return {**files, "files/assay.rules.yml": DEPLOY / "prometheus" / "assay.rules.yml"}


def test_the_charts_files_are_links_into_deploy():
    there = {str(path.relative_to(chart.CHART)): path for path in (chart.CHART / "files").rglob("*") if not path.is_dir()}
    assert set(there) == set(deployed())
    for name, path in there.items():
        assert path.is_symlink() and not os.path.isabs(os.readlink(path)) and path.resolve() == deployed()[name].resolve()


def test_rendered_dashboards_and_rules_are_byte_for_byte_those_of_deploy():
    documents = chart.render_variant("everything")
    boards = {key: text for d in documents if d["kind"] == "ConfigMap" and d["metadata"]["labels"].get("grafana_dashboard") == "1"
              for key, text in d["data"].items()}
    assert {name: text.encode() for name, text in boards.items()} == {
        f"assay-{path.name}": path.read_bytes() for path in (DEPLOY / "grafana").glob("*.json")}
    rules = chart.one(documents, "ConfigMap", "-rules")["data"]
    assert {name: text.encode() for name, text in rules.items()} == {"assay.rules.yml": deployed()["files/assay.rules.yml"].read_bytes()}
    assert chart.one(documents, "PrometheusRule")["spec"] == yaml.safe_load(rules["assay.rules.yml"])


def test_the_scraped_job_is_the_one_of_the_rules():
    jobs = set(re.findall(r'job="([^"]*)"', deployed()["files/assay.rules.yml"].read_text()))
    endpoint = chart.one(chart.render_variant("cpu-ha"), "ServiceMonitor")["spec"]["endpoints"][0]
    assert jobs == {"assay"} and endpoint["relabelings"] == [{"targetLabel": "job", "replacement": "assay"}]


def test_lint_is_strict_about_every_variant():
    for path in chart.variants().values():
        chart.helm("lint", "--strict", chart.CHART, "--values", path, "--kube-version", chart.MINORS[-1])


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("package")
    chart.helm("package", chart.CHART, "--destination", folder)
    (path,) = folder.glob("*.tgz")
    return path


def test_the_package_holds_the_files_and_renders_the_same(package):
    with tarfile.open(package) as archive:
        members = {member.name.removeprefix("assay/"): member for member in archive.getmembers()}
        assert all(member.isfile() for member in members.values())
        assert not [name for name in members if name.startswith("ci/")]
        for name, path in deployed().items():
            assert archive.extractfile(members[name]).read() == path.read_bytes()
    arguments = ("--namespace", chart.NAMESPACE, "--kube-version", chart.MINORS[-1], "--values", str(chart.variants()["cpu-ha"]))
    assert chart.load(chart.helm("template", chart.RELEASE, package, *arguments)) == chart.render_variant("cpu-ha")


def test_the_charts_version_is_the_projects():
    project = re.search(r"project\(assay VERSION ([\d.]+)", (chart.ROOT / "CMakeLists.txt").read_text())[1]
    metadata = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
    assert (metadata["appVersion"], metadata["version"]) == (project, project)


def notes(name):
    return chart.notes(chart.variants()[name])


@pytest.mark.parametrize("name", chart.variants())
def test_every_command_of_the_notes_fits_the_release(name):
    """Ports, flags and what it needs; no way in is shown that is closed."""
    documents, text = chart.render_variant(name), notes(name)
    config = chart.config_of(documents)
    deployment = chart.one(documents, "Deployment")["metadata"]["name"]
    forwarded = [line.split() for line in text.splitlines() if " port-forward " in line]
    ports = [int(port) for line in forwarded for port in line[5:]]
    assert all(line[:5] == ["kubectl", "--namespace", chart.NAMESPACE, "port-forward", f"deployment/{deployment}"] for line in forwarded)
    commands = [line.split() for line in text.splitlines() if line.startswith("  assay ")]
    wanted = {"--ca": "tls" in config, "--server-name": "tls" in config, "--cert": "client_ca" in config.get("tls", {}),
              "--key": "client_ca" in config.get("tls", {}), "--token-file": "tokens" in config["auth"]}
    for command in commands:
        assert {flag: flag in command for flag in wanted} == wanted
        assert int(command[2].rsplit(":")[1]) in ports
    tested = [d for d in documents if d["kind"] == "Pod" and d["metadata"]["name"].endswith("-test")]
    assert text.count(f"  helm test {chart.RELEASE} --namespace {chart.NAMESPACE}\n") == len(tested)
    pages = [line for line in text.splitlines() if f":{config['http_port']}/" in line]
    wanted = {"curl ": "tls" in config or "tokens" in config["auth"], "--cacert": "tls" in config, "https:": "tls" in config,
              "--cert": "client_ca" in config.get("tls", {}), "Bearer $TOKEN": "tokens" in config["auth"]}
    assert [{part: part in page for part in wanted} for page in pages] == [wanted]
    may_admit = config["admin_port"] > 0 and ("model_repository" in config or "model_roots" in config)
    assert [command[-4] for command in commands if "admit" in command] == ["admit"] * may_admit
    assert set(ports) == {config["grpc_port"], config["http_port"], *([config["admin_port"]] * may_admit)}
    names = [part for command in commands for flag, part in zip(command, command[1:]) if flag == "--server-name"]
    for certificate in (d for d in documents if d["kind"] == "Certificate"):
        assert set(names) <= set(certificate["spec"]["dnsNames"]) and "127.0.0.1" in certificate["spec"]["ipAddresses"]


def test_notes_say_why_nothing_can_be_admitted():
    assert "none can be admitted: paths must lead below" in notes("default") and " admit PATH" not in notes("default")
    assert "from below /models:" in notes("cpu-ha")


def test_notes_have_a_call_that_exists():
    protos = "".join(path.read_text() for path in (chart.ROOT / "proto").rglob("*.proto"))
    for name in ("default", "tls-mtls", "everything"):
        call = re.search(r"grpcurl .* (\S+):(\d+) (\w+)\.(\w+)/(\w+)$", notes(name), re.MULTILINE)
        assert f"package {call[3]};" in protos and re.search(rf"service {call[4]}\b", protos) and re.search(rf"rpc {call[5]}\(", protos)
        assert int(call[2]) == chart.config_of(chart.render_variant(name))["grpc_port"]
    assert "-plaintext" in notes("default") and "No tokens" in notes("default") and "There are no models" in notes("default")
    assert (chart.ROOT / "proto" / re.search(r"-import-path proto -proto (\S+)", notes("everything"))[1]).is_file()  # it has no reflection
    assert "-import-path" not in notes("default")
    secured = notes("tls-mtls")
    assert "-cert CLIENT.pem" in secured and "authorization: Bearer" in secured and "https://" in secured and "No T" not in secured


def test_no_registry_is_named():
    """Whose registry it is, is for the site to say."""
    for path in [chart.CHART / "values.yaml", chart.CHART / "Chart.yaml", *(chart.CHART / "templates").rglob("*")]:
        if path.is_file():
            assert not re.search(r"\b(docker\.io|ghcr\.io|quay\.io|gcr\.io|registry\.k8s\.io|[a-z0-9-]+\.azurecr\.io)\b", path.read_text())


def helm_lines(text):
    """Every helm command of a document's blocks, lines that go on joined."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.startswith("helm ")]


def test_the_helm_commands_of_the_documents_work(tmp_path):
    """With the values that stand beside them; installs are rendered only, as there is no cluster."""
    text = (chart.ROOT / "docs" / "deploy.md").read_text()
    for name, values in re.findall(r"```yaml\n# (\S+\.yaml)\n(.*?)```", text, re.DOTALL):
        (tmp_path / name).write_text(values)
    run = []
    for line in helm_lines(text):
        command = [str(chart.CHART) if word == "helm/assay" else str(tmp_path / word) if word.endswith(".yaml") else word
                   for word in line.split()[1:]]
        if command[0] == "install":
            chart.helm(*command, "--dry-run=client")
            documents = chart.load(chart.helm("template", *command[1:], "--kube-version", chart.MINORS[-1]))
            assert chart.schema_problems(documents, chart.MINORS[-1]) == []
        elif command[0] == "package":
            chart.helm(*command, "--destination", tmp_path)
        elif command[0] == "lint":
            chart.helm(*command)
        run.append(command[0])
    assert run.count("install") == 5 and {"package", "lint"} <= set(run)


FAKE_CURL = """#!/bin/sh
# curl --fail ... --output FILE URL: copies the file of that name; notes its arguments.
echo "$@" >> "$LOG"
while [ $# -gt 1 ]; do if [ "$1" = --output ]; then out=$2; fi; shift; done
exec cp "$SOURCE/${1##*/}" "$out"
"""


def download(tmp_path, sha256):
    """Runs the init container's script with a curl that copies; its /models is a folder of the test."""
    values = {"models": {"source": "download", "download": {"headerSecret": {"name": "s"}, "files": [
        {"url": "https://example.org/a.gguf", "sha256": sha256, "path": "a/1/model.gguf"}]}}}
    container = chart.pod_of(chart.render_values(values))["initContainers"][0]
    assert container["command"] == ["sh", "-c"]
    (tmp_path / "bin").mkdir(exist_ok=True)
    curl = tmp_path / "bin" / "curl"
    curl.write_text(FAKE_CURL)
    curl.chmod(0o755)
    script = container["args"][0].replace("/models/", f"{tmp_path}/models/")
    environment = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "SOURCE": str(tmp_path), "LOG": str(tmp_path / "log")}
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, env=environment)


def test_the_download_script_takes_checks_and_keeps(tmp_path):
    (tmp_path / "a.gguf").write_text("weights")
    good = hashlib.sha256(b"weights").hexdigest()
    target = tmp_path / "models" / "a" / "1" / "model.gguf"
    first = download(tmp_path, good)
    assert (first.returncode, target.read_text()) == (0, "weights"), first.stderr
    assert "--header @/etc/download/header" in (tmp_path / "log").read_text()
    assert download(tmp_path, good).stdout.startswith("have ")
    assert len((tmp_path / "log").read_text().splitlines()) == 1


def test_the_download_script_refuses_another_file(tmp_path):
    (tmp_path / "a.gguf").write_text("other weights")
    done = download(tmp_path, hashlib.sha256(b"weights").hexdigest())
    assert done.returncode != 0 and done.stderr == "wrong sha256: https://example.org/a.gguf\n"
    assert [path for path in (tmp_path / "models").rglob("*") if path.is_file()] == []


@pytest.mark.skipif(not shutil.which("flock"), reason="no flock here")
def test_the_lock_of_quantize_once_lets_one_in_at_a_time(tmp_path):
    """The container's command, with a script in the place of `assay`: of four at once none finds another at work."""
    container = chart.pod_of(chart.render_variant("cpu-ha"))["initContainers"][0]
    (tmp_path / "assay").write_text('#!/bin/sh\nmkdir "$PLACE/busy" || exit 9\n: > "$PLACE/ran.$$"\nrmdir "$PLACE/busy"\n')
    (tmp_path / "assay").chmod(0o755)
    command = [part.replace("/cache/", f"{tmp_path}/") for part in container["command"]]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PLACE": str(tmp_path)}
    running = [subprocess.Popen(command, env=environment) for _ in range(4)]
    assert [process.wait() for process in running] == [0, 0, 0, 0]
    assert len(list(tmp_path.glob("ran.*"))) == 4


def examples():
    return sorted(path for folder in ("kserve", "gateway") for path in (DEPLOY / folder).glob("*.yaml"))


@pytest.mark.parametrize("path", examples(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_examples_are_valid(path):
    documents = chart.load(path.read_text())
    assert documents and chart.schema_problems(documents, chart.MINORS[-1]) == []


def test_the_runtime_of_kserve_is_set_like_the_chart():
    runtime, = chart.load((DEPLOY / "kserve" / "runtime.yaml").read_text())
    server, ours = runtime["spec"]["containers"][0], chart.pod_of(chart.render())["containers"][0]
    flags = dict(argument.removeprefix("--").split("=") for argument in server["args"])
    assert (flags["grpc-port"], flags["http-port"], flags["model-repository"]) == ("9000", "8080", "/mnt/models")
    assert server["image"] == ours["image"] and server["lifecycle"] == ours["lifecycle"]
    for probe in ("startupProbe", "livenessProbe"):
        assert {key: server[probe][key] for key in ours[probe]} == ours[probe]
    service, = chart.load((DEPLOY / "kserve" / "inference-service.yaml").read_text())
    drain = int(flags["drain-timeout"].removesuffix("s"))
    assert service["spec"]["predictor"]["terminationGracePeriodSeconds"] >= server["lifecycle"]["preStop"]["sleep"]["seconds"] + drain + 5
    assert service["spec"]["predictor"]["model"]["modelFormat"]["name"] in {f["name"] for f in runtime["spec"]["supportedModelFormats"]}


def test_the_pool_chooses_the_charts_pods_and_knows_its_metrics():
    pool, _, engine = chart.load((DEPLOY / "gateway" / "inference-pool.yaml").read_text())
    documents = chart.load(chart.helm("template", "assay", chart.CHART, "--namespace", "models"))
    template = chart.one(documents, "Deployment")["spec"]["template"]
    assert pool["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert pool["spec"]["targetPorts"][0]["number"] == chart.config_of(documents)["grpc_port"]
    route = chart.load((DEPLOY / "gateway" / "route.yaml").read_text())[0]
    service = chart.one(documents, "Service", "assay")
    assert route["spec"]["rules"][0]["backendRefs"] == [{"name": service["metadata"]["name"], "port": 8001}]
    metrics = (chart.ROOT / "docs" / "operations.md").read_text()
    specs = {key: value for key, value in yaml.safe_load(engine["data"]["engine.yaml"])[0].items() if key.endswith("Spec") and value}
    assert len(specs) == 4 and all(value in metrics for value in specs.values())


def test_routes_name_services_that_exist():
    protos = "".join(path.read_text() for path in (chart.ROOT / "proto").rglob("*.proto"))
    text = "".join(path.read_text() for path in examples())
    for package, service in re.findall(r"(?:service: |value: /)([\w.]+)\.([A-Z]\w+)", text):
        assert f"package {package};" in protos and re.search(rf"service {service}\b", protos)


class Backend:
    """A server on its own loopback address that answers with its name, and has a health service."""

    def __init__(self, address, port=0):
        self.health = health.HealthServicer()
        self.serve(True)
        self.server = grpc.server(futures.ThreadPoolExecutor(4))
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        answer = grpc.unary_unary_rpc_method_handler(lambda request, context: address.encode())
        self.server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Name", {"Get": answer})])
        self.port = self.server.add_insecure_port(f"{address}:{port}")
        self.server.start()

    def serve(self, ready):
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        self.health.set("ready", status)


def test_clients_with_the_service_config_balance_and_avoid_what_is_not_ready():
    text = (DEPLOY / "gateway" / "client.json").read_text()
    one = Backend("127.0.0.2")
    other = Backend("127.0.0.3", one.port)
    try:
        target = f"ipv4:127.0.0.2:{one.port},127.0.0.3:{one.port}"
        with grpc.insecure_channel(target, options=[("grpc.service_config", text)]) as channel:
            call = channel.unary_unary("/test.Name/Get")

            def answers():
                return {call(b"", timeout=10, wait_for_ready=True) for _ in range(8)}

            def wait_for(expected):
                deadline = time.monotonic() + 30
                while answers() != expected:
                    assert time.monotonic() < deadline, expected

            wait_for({b"127.0.0.2", b"127.0.0.3"})
            other.serve(False)
            wait_for({b"127.0.0.2"})
            other.serve(True)
            wait_for({b"127.0.0.2", b"127.0.0.3"})
            other.server.stop(None)  # at once: calls under way end UNAVAILABLE, and are tried again
            assert {call(b"", timeout=10) for _ in range(20)} <= {b"127.0.0.2", b"127.0.0.3"}
            wait_for({b"127.0.0.2"})
    finally:
        one.server.stop(None)
        other.server.stop(None)
