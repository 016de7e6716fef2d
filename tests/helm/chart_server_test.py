"""The pod as the chart writes it, played on this host: its init container, its server, the kubelet's probes, `helm test`, SIGTERM."""

import http.client
import os
import pathlib
import shutil
import signal
import socket
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
        for name in ("cache", "models", "etc/assay"):
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


@pytest.mark.skipif(not shutil.which("flock"), reason="no flock here")
def test_the_pod_quantizes_starts_answers_probes_and_drains(tmp_path):
    binaries = chart.server_binary().parent.parent
    if not (binaries / "cli" / "assay").is_file():
        pytest.skip("NOT RUN: no assay in the build tree")
    ports = dict(zip(("grpcPort", "httpPort", "adminPort", "healthPort"), free_ports(4)))
    documents = chart.render_values({
        "network": {"listen": "127.0.0.1", **ports}, "models": {"source": "pvc", "pvc": {"existingClaim": "models"}},
        "artifactCache": {"type": "pvc", "quantizeOnce": {"enabled": True, "models": ["stories260k"]}}})
    pod = Pod(documents, tmp_path, binaries)
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
        connection = http.client.HTTPConnection("127.0.0.1", ports["httpPort"], timeout=30)
        connection.request("GET", "/metrics")
        metrics = connection.getresponse().read().decode()
        # The init container quantized; the server only loaded.
        assert 'assay_artifact_cache_requests_total{result="hit"} 1' in metrics
        asked = chart.one(documents, "Pod", "-test")["spec"]["containers"][0]
        asked["args"] = [part.replace("test-assay-headless", "127.0.0.1") for part in asked["args"]]
        answer = pod.run(asked)
        assert (answer.returncode, answer.stdout.strip()) == (0, "SERVING"), answer.stderr
        server.send_signal(signal.SIGTERM)
        assert server.wait(pod.spec["terminationGracePeriodSeconds"]) == 0, log.read_text()
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
