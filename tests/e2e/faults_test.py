"""Faults done to a real server, and what must hold: nobody gets a wrong answer, and it serves again (docs/reliability.md)."""

import http.client
import os
import pathlib
import random
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time

import grpc
import pytest
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from conftest import BUILD, Assay, Server, wait_until
from http2_frames import END_HEADERS, HEADERS, REQUEST, connect, frame

PROMPT = "Once upon a time"
TOKENS = 12


def answer(server, tokens=TOKENS):
    """What the model says; greedy, so that every right answer is the same."""
    parts = list(Assay(server.address).generate(PROMPT, max_tokens=tokens))
    return "".join(part.text for part in parts)


@pytest.fixture
def folder(tmp_path, repository):
    """A repository of stories260k alone, and servers over the same cache."""
    shutil.copytree(repository / "stories260k", tmp_path / "models" / "stories260k")
    return tmp_path


@pytest.fixture
def start(folder):
    servers = []

    def start_one(*flags, wait=True, before=()):
        server = Server(folder, "--model-repository", folder / "models", *flags,
                        program=(*before, BUILD / "server" / "assay-server"))
        servers.append(server)
        return server.wait_ready() if wait else server

    yield start_one
    for server in servers:
        server.stop()


@pytest.fixture
def expected(start):
    server = start("--cache-dir", "none")
    text = answer(server)
    server.stop()
    assert text
    return text


def corrupt(server):
    return server.metric(r'^assay_artifact_cache_requests_total{.*result="corrupt"')


def test_killed_at_any_moment_of_an_admission(start, folder, expected):
    """SIGKILL while an artifact is made: the next start finds a whole one or none."""
    moments = [0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9]
    for moment in moments:
        shutil.rmtree(folder / "artifacts", ignore_errors=True)
        server = start(wait=False)
        wait_until(lambda: any("gRPC" in line or "ADMITTING" in line for line in server.stderr) or server.process.poll() is not None)
        time.sleep(moment)
        server.stop()
        after = start()
        assert corrupt(after) == 0, f"killed after {moment} s"
        assert answer(after) == expected
        after.stop()


def unfinished(folder):
    return list((folder / "artifacts" / "artifacts").glob("*.tmp.*"))


def finished(folder):
    return [path for path in (folder / "artifacts" / "artifacts").glob("*/manifest.json") if ".tmp." not in str(path)]


@pytest.mark.parametrize("stage", [unfinished, finished], ids=["while_it_is_written", "when_it_has_its_name"])
def test_killed_at_the_moments_that_matter(start, folder, expected, stage):
    """The times above may all miss what takes milliseconds: here the kill comes when the files say so."""
    hits = 0
    for _ in range(5):
        shutil.rmtree(folder / "artifacts", ignore_errors=True)
        server = start(wait=False)
        end = time.monotonic() + 60
        while not stage(folder):
            assert time.monotonic() < end, server.log()
        server.stop()
        hits += bool(unfinished(folder)) if stage is unfinished else 1
        after = start()
        assert corrupt(after) == 0 and unfinished(folder) == [] and len(finished(folder)) == 1
        assert answer(after) == expected
        after.stop()
    assert hits > 0


def test_killed_under_load_and_started_again(start, expected):
    server = start()
    stop, wrong, done = threading.Event(), [], []

    def client():
        while not stop.is_set():
            try:
                text = answer(server)
            except grpc.RpcError:
                continue  # lost with its server; nobody was told anything
            (done if text == expected else wrong).append(text)

    clients = [threading.Thread(target=client) for _ in range(8)]
    for one in clients:
        one.start()
    wait_until(lambda: len(done) >= 20)
    server.process.kill()
    stop.set()
    for one in clients:
        one.join()
    assert wrong == []
    again = start()
    assert again.metric(r'^assay_artifact_cache_requests_total{.*result="hit"') == 1
    assert answer(again) == expected


def test_stopped_and_continued(start, expected):
    """SIGSTOP for a second: late answers, right ones."""
    server = start()
    texts, failed = [], []

    def client():
        for _ in range(5):
            try:
                texts.append(answer(server))
            except grpc.RpcError as error:
                failed.append(error)

    clients = [threading.Thread(target=client) for _ in range(4)]
    for one in clients:
        one.start()
    server.process.send_signal(signal.SIGSTOP)
    time.sleep(1)
    server.process.send_signal(signal.SIGCONT)
    for one in clients:
        one.join()
    assert failed == [] and texts == [expected] * 20


@pytest.mark.parametrize("seed", range(6))
def test_a_cache_that_rots(start, folder, expected, seed):
    """Random bytes of an artifact are flipped, or its end is lost: found, set aside, quantized again."""
    start().stop()
    rng = random.Random(seed)
    files = sorted(path for path in (folder / "artifacts").rglob("*") if path.is_file() and path.stat().st_size > 0)
    assert files
    for path in rng.sample(files, min(2, len(files))):
        data = bytearray(path.read_bytes())
        if seed % 2:
            del data[rng.randrange(len(data)):]
        else:
            for _ in range(8):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    server = start()
    assert answer(server) == expected
    server.stop()
    assert answer(start()) == expected  # and what was made anew is whole


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT RUN: mounting a small file system needs root")
@pytest.mark.parametrize("options", ["size=64k", "size=1m,ro"])
def test_a_cache_that_is_full_or_read_only(start, folder, expected, options):
    cache = folder / "artifacts"
    cache.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", cache], capture_output=True).returncode != 0:
        pytest.skip("NOT RUN: this root may not mount")
    try:
        server = start()
        assert answer(server) == expected
        assert any("cache" in line or "store" in line for line in server.stderr if "WARNING" in line or "not stored" in line), server.log()
        server.stop()
    finally:
        subprocess.run(["umount", "-l", cache], check=True)


def test_no_descriptors_left(start, expected):
    server = start(before=("prlimit", "--nofile=260:260"))
    host, port = server.address.rsplit(":", 1)
    clients = []
    for _ in range(400):
        try:
            clients.append(socket.create_connection((host, int(port)), timeout=5))
        except OSError:
            break
    assert server.process.poll() is None
    for client in clients:
        client.close()

    def gone():
        try:
            return server.metric(r"^assay_grpc_connections ") <= 1
        except ConnectionError:  # as long as they are not, the port of HTTP turns away, too
            return False

    wait_until(gone)
    assert server.metric(r'^assay_connections_refused_total{reason="no_descriptor"}') > 0
    assert answer(server) == expected


def test_too_little_memory_is_a_verdict(start, folder):
    server = start("--memory-limit", "64KiB", "--strict-readiness", "false")
    assert any("does not fit" in line for line in server.stderr), server.log()
    assert server.get("/healthz")[0] == 200


@pytest.fixture
def memory_cgroup():
    """A cgroup of our own, and a function that bounds its memory; the kernel kills in it."""
    root = pathlib.Path("/sys/fs/cgroup")
    unified = (root / "cgroup.controllers").exists()
    group = (root if unified else root / "memory") / f"assay-test-{os.getpid()}"
    limit = group / ("memory.max" if unified else "memory.limit_in_bytes")
    try:
        group.mkdir()
        limit.write_text("max" if unified else "-1")
    except OSError as error:
        pytest.skip(f"NOT RUN: no cgroup can be made here: {error}")

    def bounded(size):
        limit.write_text(str(size))
        return ("sh", "-c", 'echo $$ > "$0" && exec "$@"', group / "cgroup.procs")

    yield bounded
    wait_until(lambda: not (group / "cgroup.procs").read_text().strip())
    group.rmdir()


def test_no_memory_left_in_the_cgroup(start, folder, expected, memory_cgroup):
    """From far too little to enough, a megabyte at a time where it matters: killed, refused or served; what follows is whole."""
    outcomes = []
    for megabytes in (6, 8, 9, 10, 11, 12, 14, 64):
        shutil.rmtree(folder / "artifacts", ignore_errors=True)
        server = start("--strict-readiness", "false", wait=False, before=memory_cgroup(megabytes << 20))
        wait_until(lambda: server._ready.is_set())
        try:
            serves = server.metric(r'^assay_model_ready{model="stories260k"') == 1
            outcomes.append("serves" if serves else "refused")
            assert not serves or answer(server) == expected
        except (OSError, grpc.RpcError, AttributeError, http.client.HTTPException):  # it is gone, or goes now
            outcomes.append(server.wait())
        server.stop()
        after = start()
        assert corrupt(after) == 0, (megabytes, outcomes)
        assert answer(after) == expected
        after.stop()
    print(outcomes)
    assert -signal.SIGKILL in outcomes and outcomes[-1] == "serves", outcomes
    assert set(outcomes) <= {-signal.SIGKILL, "refused", "serves"}, outcomes


def test_memory_that_is_nearly_used_up(start):
    """Above the watermark requests are refused, with a time to come again; health and metrics answer."""
    server = start("--limits-memory-watermark", "0.0001")
    with pytest.raises(grpc.RpcError) as refused:
        answer(server)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "limits.memory_watermark" in refused.value.details()
    assert server.get("/healthz")[0] == 200


def test_clients_that_break_off(start, expected):
    """RST in the middle of streams: sequences end, nothing of them stays."""
    server = start()
    for _ in range(20):
        client = connect(server)
        request = frame(HEADERS, END_HEADERS, 1, REQUEST)
        client.sendall(request)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    channels = []
    for _ in range(30):
        assay = Assay(server.address)
        stream = iter(assay.generate(PROMPT, max_tokens=200))
        next(stream)
        channels.append((assay, stream))
    for assay, _ in channels:
        assay.channel.close()
    wait_until(lambda: server.load() == 0)
    wait_until(lambda: server.metric(r'^assay_llm_kv_cache_blocks{.*state="used"') == 0)
    assert answer(server) == expected


def test_ten_thousand_idle_streams(start, expected):
    """Opened, never ended, nothing sent: bounded, and others are served."""
    server = start("--limits-max-connections-per-address", "0")
    memory = server.resident_bytes()
    clients = [connect(server) for _ in range(40)]
    for client in clients:
        client.sendall(b"".join(frame(HEADERS, END_HEADERS, stream, REQUEST) for stream in range(1, 501, 2)))
    assert answer(server) == expected
    assert (server.resident_bytes() - memory) / 10_000 < 64 << 10  # of a stream: gRPC's call and its arena
    for client in clients:
        client.close()
    wait_until(lambda: server.metric(r"^assay_grpc_connections ") <= 1)
    assert answer(server) == expected


def noisy_field(rng, depth=3):
    """One in protobuf's encoding, of any number: a varint, letters, or more such."""
    number = rng.randrange(1, 9)
    if rng.random() < 0.3:
        return bytes([number << 3, rng.randrange(128)])
    nested = depth > 0 and rng.random() < 0.6
    inner = b"".join(noisy_field(rng, depth - 1) for _ in range(rng.randrange(3))) if nested else rng.choices(range(97, 123), k=rng.randrange(8))
    return bytes([number << 3 | 2, len(inner), *inner]) if len(inner) < 128 else b""


def is_message(kind, data):
    try:
        kind.FromString(data)
        return True
    except DecodeError:
        return False


def test_messages_of_noise(start, expected):
    """Whatever bytes are sent as a request: a status, not a crash. UNIMPLEMENTED is gRPC's word for what is no message at all."""
    server = start()
    rng = random.Random(7)
    allowed = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND,
               grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.RESOURCE_EXHAUSTED,
               grpc.StatusCode.UNAVAILABLE}
    valid = bytes.fromhex("0a0b73746f726965733236306b")  # model_name: stories260k
    with grpc.insecure_channel(server.address) as channel:
        for method in ("ModelInfer", "ModelReady", "ModelMetadata", "RepositoryModelLoad"):
            call = channel.unary_unary("/inference.GRPCInferenceService/" + method)
            for attempt in range(300):
                data = bytearray(valid + rng.randbytes(rng.randrange(40)))
                for _ in range(rng.randrange(4)):
                    data[rng.randrange(len(data))] = rng.randrange(256)
                if attempt % 2:  # most of the above are no message, and end in gRPC
                    data = valid + b"".join(noisy_field(rng) for _ in range(rng.randrange(4)))
                try:
                    call(bytes(data), timeout=30)
                except grpc.RpcError as error:
                    # Parsers differ in the last details, such as groups: the server may read what Python does not.
                    parsed = is_message(getattr(service_pb2, method + "Request"), bytes(data))
                    unknown = not parsed or error.details().startswith("load parameter ")
                    assert error.code() in allowed or (unknown and error.code() == grpc.StatusCode.UNIMPLEMENTED), error
    assert server.process.poll() is None
    assert answer(server) == expected


def test_deadlines_too_short_to_be_met(start, expected):
    server = start()
    assay = Assay(server.address)
    for _ in range(300):
        with pytest.raises(grpc.RpcError) as late:
            list(assay.generate(PROMPT, max_tokens=200, timeout=0.001))
        # The second: it would have passed in the queue.
        assert late.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
    wait_until(lambda: server.load() == 0)
    assert answer(server) == expected


def test_terminated_in_the_middle_of_it_all(start, expected):
    """SIGTERM: what was accepted is answered, exit code 0."""
    server = start()
    texts, refused = [], []
    whole = answer(server, tokens=60)
    assert whole.startswith(expected) and len(whole) > 2 * len(expected)

    def client():
        try:
            texts.append(answer(server, tokens=60))
        except grpc.RpcError as error:
            refused.append(error.code())

    clients = [threading.Thread(target=client) for _ in range(16)]
    for one in clients:
        one.start()
    wait_until(lambda: server.load() > 0)
    server.terminate()
    for one in clients:
        one.join()
    assert server.wait() == 0
    assert set(refused) <= {grpc.StatusCode.UNAVAILABLE}
    assert texts and set(texts) == {whole}

