"""A server with GPUs, emulated ones: what it says of them, what it serves there, and how it fails."""

import json
import shutil
import signal
import subprocess

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from conftest import BUILD, GOLDEN, STORIES, Assay, Server, clean_environment, wait_until

PROMPT, EXPECTED = next(iter(GOLDEN.items()))
# Weights and activations in 16 bit: greedy tokens are those of the reference (in f16, which sm75 has).
POLICY = """version: 1
recipes:
  half: {scheme: f32, activation: a16, embedding: f32}
budgets:
  wide: {mean_kl: 0.5, top1: 0.5, perplexity_ratio: 2, cosine: 0.9, label_agreement: 0.9}
rules:
  - {name: gpu, reason: a GPU is here, when: {device: cuda}, recipe: half, budget: wide}
  - {name: host, reason: no GPU is free, when: {device: cpu}, recipe: half, budget: wide}
"""


@pytest.fixture
def start(tmp_path):
    servers = []

    def run(*flags):
        servers.append(Server(tmp_path, *flags, program=(BUILD / "tests" / "e2e" / "emulated_gpu_server",)))
        return servers[-1]

    yield run
    for server in servers:
        server.stop()


@pytest.fixture
def gpu_server(start, tmp_path):
    (tmp_path / "policy.yaml").write_text(POLICY)
    folder = tmp_path / "models" / "stories260k"
    folder.mkdir(parents=True)
    shutil.copy(STORIES, folder)

    def run(*flags):
        return start("--model-repository", tmp_path / "models", "--policy", tmp_path / "policy.yaml",
                     "--engine-max-context", "128", *flags).wait_ready()

    return run


def client(server, *arguments):
    command = [BUILD / "cli" / "assay", arguments[0], "--server", server.address, *arguments[1:]]
    return subprocess.run(command, capture_output=True, text=True, env=clean_environment(), timeout=120)


def test_a_model_is_served_by_the_first_gpu_and_everything_says_so(gpu_server):
    server = gpu_server("--gpu-profile", "sm75")
    assert "emulated (sm_75)" in server.log()
    assay = Assay(server.address)
    answer = list(assay.generate(PROMPT, max_tokens=12, temperature=0.0, ignore_eos=True))
    assert [token.token for part in answer for token in part.tokens] == EXPECTED["greedy_ids"][:12]
    report = json.loads(client(server, "report", "stories260k", "--json").stdout)
    assert report["decision"]["device"] == "cuda:0"
    assert {layer["kernel"] for layer in report["layers"]} == {"cuda"}
    assert any(line.startswith("memory of cuda:0: ") for line in report["decision"]["trace"]), report["decision"]["trace"]
    metrics = server.get("/metrics")[1]
    assert 'assay_device_healthy{device="cuda:0"} 1' in metrics
    assert 'assay_device_memory_bytes{device="cuda:1",state="used"} 0' in metrics
    assert 'assay_device_memory_bytes{device="cuda:0",state="used"} 0' not in metrics
    page = server.get("/")[1]
    assert "emulated (sm_75)" in page and "on cuda:0" in page
    assert "emulated (sm_75)" in client(server, "status").stdout


def test_a_lost_gpu_takes_readiness_and_health_away_and_says_why(gpu_server):
    server = gpu_server()
    assay = Assay(server.address)
    health = health_pb2_grpc.HealthStub(grpc.insecure_channel(server.address))
    serving = lambda service: health.Check(health_pb2.HealthCheckRequest(service=service)).status  # noqa: E731
    assert serving("ready") == serving("") == health_pb2.HealthCheckResponse.SERVING
    server.process.send_signal(signal.SIGUSR1)
    with pytest.raises(grpc.RpcError) as error:
        list(assay.generate(PROMPT, max_tokens=8))
    assert "illegal address" in error.value.details(), error.value.details()
    wait_until(lambda: serving("ready") == health_pb2.HealthCheckResponse.NOT_SERVING)
    assert serving("") == health_pb2.HealthCheckResponse.NOT_SERVING
    status, body = server.get("/readyz")
    assert status == 503 and "cuda:0 is lost, restart the server" in body and "illegal address" in body
    assert 'assay_device_healthy{device="cuda:0"} 0' in server.get("/metrics")[1]
    assert "cuda:0 is lost" in client(server, "events").stdout
    # What comes next is placed elsewhere.
    answer = client(server, "admit", STORIES, "--name", "second")
    assert answer.returncode == 0, answer.stderr
    report = json.loads(client(server, "report", "second", "--json").stdout)
    assert report["decision"]["device"] == "cpu" or report["decision"]["device"] == "cuda:1"
    server.terminate()
    assert server.wait() == 0


def test_devices_can_be_named_or_left_alone(gpu_server):
    server = gpu_server("--gpu-devices", "cuda:1")
    assert json.loads(client(server, "report", "stories260k", "--json").stdout)["decision"]["device"] == "cuda:1"
    server.stop()
    server = gpu_server("--gpu-devices", "none")
    assert json.loads(client(server, "report", "stories260k", "--json").stdout)["decision"]["device"] == "cpu"
    assert "no GPU in use" in server.log()


@pytest.mark.parametrize("flags, says", [(("--gpu-devices", "cuda:7"), "no such device: cuda:7"),
                                         (("--gpu-devices", "gpu0"), "devices=gpu0"),
                                         (("--gpu-profile", "sm120"), "a device cannot play a newer one: profile=sm120")])
def test_devices_that_do_not_exist_end_the_start(start, flags, says):
    server = start(*flags)
    assert server.wait() == 2
    assert says in server.log()
