"""The pod as the chart writes it, played on this host: its init container, its server, the kubelet's probes, `helm test`, SIGTERM."""

import hashlib
import http.client
import os
import pathlib
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

import chart

STORIES = chart.ROOT / "data" / "stories260k" / "stories260K-f32.gguf"
START_SECONDS = 240  # generous: the machine may be busy with other tests


def free_ports(number):
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Pod:
    """The rendered pod, with its volumes as folders of the test."""

    def __init__(self, documents, folder, binaries):
        self.documents, self.folder = documents, folder
        self.spec = chart.pod_of(documents)
        self.environment = {"PATH": f"{binaries / 'server'}:{binaries / 'cli'}:{os.environ['PATH']}", "HOME": str(folder)}
        for name in ("cache", "models", "etc/assay", "etc/assay-tls", "etc/assay-auth"):
            (folder / name).mkdir(parents=True)
        config = yaml.safe_dump(chart.config_of(documents))
        (folder / "etc" / "assay" / "config.yaml").write_text(self.on_host(config))

    def on_host(self, text):
        for path in ("/cache", "/models", "/etc/assay"):
            text = text.replace(path, f"{self.folder}{path}")
        return text

    def run(self, container):
        command = [self.on_host(part) for part in container["command"] + container.get("args", [])]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=START_SECONDS)

    def start(self):
        container = self.spec["containers"][0]
        command = [self.on_host(part) for part in container["command"] + container["args"]]
        with open(self.folder / "log", "w") as log:
            return subprocess.Popen(command, env=self.environment, stderr=log)

    def probe(self, name):
        """As the kubelet does: plaintext, no token. None: no answer."""
        wanted = self.spec["containers"][0][name]["grpc"]
        with grpc.insecure_channel(f"127.0.0.1:{wanted['port']}") as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=wanted["service"]), timeout=5)
            except grpc.RpcError:
                return None
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


# The names of docs/deploy.md are in the certificate.
SECURED = {"fullnameOverride": "assay", "tls": {"enabled": True, "existingSecret": "assay-tls"}, "auth": {"existingSecret": "assay-tokens"}}
TOKENS = {"infer": "token-of-a-caller", "observe": "token-of-a-scraper"}


def fill_secrets(folder):
    """What the secrets hold, by the commands of docs/deploy.md. Returns the authority's certificate."""
    commands = (chart.ROOT / "docs" / "deploy.md").read_text().split("secure.yaml")[0].rsplit("```sh", 1)[1].splitlines()
    mine = [line for line in commands if line.startswith(("openssl", "echo")) and "scrape" not in line]
    assert len(mine) == 4
    subprocess.run(["bash", "-euc", "\n".join(mine)], cwd=folder, check=True, capture_output=True, timeout=60)
    shutil.copy(folder / "server.pem", folder / "etc" / "assay-tls" / "tls.crt")
    shutil.copy(folder / "server.key", folder / "etc" / "assay-tls" / "tls.key")
    (folder / "etc" / "assay-auth" / "tokens").write_text("".join(
        f"{role} {role} {hashlib.sha256(token.encode()).hexdigest()}\n" for role, token in TOKENS.items()))
    return folder / "authority.pem"


def scrape(port, authority, token):
    context = ssl.create_default_context(cafile=authority) if authority else None
    kind = http.client.HTTPSConnection if authority else http.client.HTTPConnection
    connection = kind("localhost" if authority else "127.0.0.1", port, timeout=30, **({"context": context} if authority else {}))
    connection.request("GET", "/metrics", headers={"authorization": f"Bearer {token}"} if token else {})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def check_that_the_ports_ask_for_tls_and_tokens(ports, authority):
    """As a caller through a forwarded port sees them: the certificate has its names."""
    credentials = grpc.ssl_channel_credentials(authority.read_bytes())
    for host in ("localhost", "127.0.0.1"):
        with grpc.secure_channel(f"{host}:{ports['grpcPort']}", credentials) as channel:
            live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
            assert live(b"", timeout=30, metadata=[("authorization", f"Bearer {TOKENS['infer']}")])
            with pytest.raises(grpc.RpcError) as refused:
                live(b"", timeout=30)
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    with grpc.insecure_channel(f"127.0.0.1:{ports['grpcPort']}") as channel:
        with pytest.raises(grpc.RpcError):
            channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=5)
    assert scrape(ports["httpPort"], authority, None)[0] == 401


def check_the_commands_of_the_notes(pod, values, authority):
    """`assay status` and the status page, as they stand there; what they name in capitals is what it is called there."""
    (pod.folder / "values.yaml").write_text(yaml.safe_dump(values))
    (pod.folder / "TOKEN").write_text(TOKENS["observe"])
    if authority:
        shutil.copy(authority, pod.folder / "CA.pem")
    lines = [line.strip() for line in chart.notes(pod.folder / "values.yaml").splitlines()]
    status, = (line for line in lines if line.startswith("assay ") and line.endswith(" status"))
    page, = (line.removeprefix("the status page: ") for line in lines if line.startswith(("curl ", "the status page: ")))
    page = page if page.startswith("curl ") else f"curl {page}"

    def run(command, token):
        return subprocess.run(["bash", "-c", command], cwd=pod.folder, env=pod.environment | {"TOKEN": token}, capture_output=True, text=True, timeout=60)

    said = run(status, TOKENS["observe"])
    assert said.returncode == 0 and "stories260k" in said.stdout, said.stderr
    if not shutil.which("curl"):
        return
    said = run(page.replace("curl ", "curl --silent --show-error --fail ", 1), TOKENS["observe"])
    assert said.returncode == 0 and "<html" in said.stdout, said.stderr
    if authority:  # and what is asked for is needed
        assert run(page.replace("curl ", "curl --silent --fail ", 1), TOKENS["infer"]).returncode != 0
        assert run(status.replace("--ca CA.pem", ""), TOKENS["observe"]).returncode != 0


@pytest.mark.parametrize("secured", [False, True], ids=["open", "tls_and_tokens"])
@pytest.mark.skipif(not shutil.which("flock"), reason="no flock here")
def test_the_pod_quantizes_starts_answers_probes_and_drains(secured, tmp_path):
    binaries = chart.server_binary().parent.parent
    if not (binaries / "cli" / "assay").is_file():
        pytest.skip("NOT RUN: no assay in the build tree")
    ports = dict(zip(("grpcPort", "httpPort", "adminPort", "healthPort"), free_ports(4)))
    values = {
        "network": {"listen": "127.0.0.1", **ports}, "models": {"source": "pvc", "pvc": {"existingClaim": "models"}},
        "artifactCache": {"type": "pvc", "quantizeOnce": {"enabled": True, "models": ["stories260k"]}}} | (SECURED if secured else {})
    documents = chart.render_values(values)
    pod = Pod(documents, tmp_path, binaries)
    authority = fill_secrets(tmp_path) if secured else None
    (tmp_path / "models" / "stories260k").mkdir()
    shutil.copy(STORIES, tmp_path / "models" / "stories260k" / "model.gguf")

    quantized = pod.run(pod.spec["initContainers"][0])
    assert quantized.returncode == 0, quantized.stderr
    server = pod.start()
    log = pathlib.Path(tmp_path / "log")
    try:
        deadline = time.monotonic() + START_SECONDS
        while pod.probe("startupProbe") != "SERVING":
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        assert (pod.probe("readinessProbe"), pod.probe("livenessProbe")) == ("SERVING", "SERVING")
        metrics = scrape(ports["httpPort"], authority, TOKENS["observe"] if secured else None)[1]
        # The init container quantized; the server only loaded.
        assert 'assay_artifact_cache_requests_total{result="hit"} 1' in metrics
        if secured:
            check_that_the_ports_ask_for_tls_and_tokens(ports, authority)
        check_the_commands_of_the_notes(pod, values, authority)
        asked = chart.one(documents, "Pod", "-test")["spec"]["containers"][0]
        asked["args"] = [re.sub("^(test-)?assay-headless", "127.0.0.1", part) for part in asked["args"]]
        answer = pod.run(asked)
        assert (answer.returncode, answer.stdout.strip()) == (0, "SERVING"), answer.stderr
        server.send_signal(signal.SIGTERM)
        assert server.wait(pod.spec["terminationGracePeriodSeconds"]) == 0, log.read_text()
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
