"""The clock of the host is set while a server runs, a day ahead and a day back: what is under way goes on, nothing stops.

clock_shift.c, preloaded, moves the clock of the day and no other, as `date -s` does.
"""

import datetime
import itertools
import pathlib
import shutil
import signal
import socket
import subprocess
import threading

import grpc
import pytest
from access_test import bearer, get, tokens_file
from conftest import BUILD, Assay, Server, wait_until
from http2_frames import PING, connect, frame

CLIENT, PROBE = "token-of-a-client-31", "token-of-a-probe-77"
DAY = 86400
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    library = tmp_path_factory.mktemp("shim") / "clock_shift.so"
    source = pathlib.Path(__file__).with_name("clock_shift.c")
    subprocess.run([shutil.which("cc") or "gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True, timeout=60)
    return library


def answer(assay, tokens=200, timeout=120):
    return "".join(part.text for part in assay.generate(PROMPT, max_tokens=tokens, ignore_eos=True, timeout=timeout,
                                                        metadata=bearer(CLIENT)))


def metric(server, name):
    body = get(server, "/metrics", PROBE)[1]
    return sum(float(line.rsplit(" ", 1)[1]) for line in body.splitlines() if line.startswith(name))


@pytest.mark.parametrize("seconds", [DAY, -DAY], ids=["ahead", "back"])
def test_the_clock_is_set(shim, tmp_path, repository, seconds):
    shift = tmp_path / "shift"
    shift.write_text("0")
    tokens = tokens_file(tmp_path / "tokens", client=("infer", CLIENT), probe=("observe", PROBE))
    server = Server(tmp_path, "--model-repository", repository, "--auth-tokens", tokens, "--tls-reload-interval", "50ms",
                    "--auth-tokens-per-minute", "1000000", "--drift-rate", "1", "--drift-cpu-share", "1",
                    "--drift-tokens-per-second", "1e9", "--limits-handshake-timeout", "1h", "--limits-max-unread-time", "1h",
                    program=("env", f"LD_PRELOAD={shim}", f"CLOCK_SHIFT_FILE={shift}", BUILD / "server" / "assay-server")).wait_ready()
    try:
        assay = Assay(server.address)
        expected = answer(assay)
        texts, failed = [], []

        def client():
            try:
                texts.append(answer(assay))
            except grpc.RpcError as error:
                failed.append(error)

        clients = [threading.Thread(target=client) for _ in range(16)]
        host, port = server.address.rsplit(":", 1)
        silent = socket.create_connection((host, int(port)), timeout=30)  # has an hour to begin
        pings = connect(server)
        for one in clients:
            one.start()
        wait_until(lambda: metric(server, "assay_inference_running_requests") > 0)
        server.process.send_signal(signal.SIGSTOP)  # in the middle of them
        shift.write_text(str(seconds))
        server.process.send_signal(signal.SIGCONT)
        for one in clients:
            one.join()
        assert failed == [] and texts == [expected] * len(clients)

        samples = metric(server, "assay_drift_shadow_samples_total")
        assert answer(assay, timeout=30) == expected
        with pytest.raises(grpc.RpcError) as late:
            answer(assay, timeout=0.0001)
        assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        wait_until(lambda: metric(server, "assay_drift_shadow_samples_total") > samples)
        pings.settimeout(10)
        pings.sendall(frame(PING, 0, 0, b"12345678") * 3)
        received = b""
        while b"12345678" not in received:
            received += (piece := pings.recv(1000))
            assert piece, "cut"
        assert metric(server, "assay_connections_refused_total") == 0
        assert metric(server, "assay_grpc_connections") >= 3
        silent.close()
        # It was set: what people read has the new date, once Abseil has read it, which it does every two seconds.
        renewals = itertools.count()

        def dated():
            tokens_file(tokens, client=("infer", CLIENT), probe=("observe", PROBE), newcomer=("infer", f"token-of-another-{next(renewals)}"))
            said = [line for line in server.stderr if "tokens renewed" in line]
            now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
            return said and abs((datetime.datetime.fromisoformat(said[-1][:19]) - now).total_seconds() - seconds) < 3600

        wait_until(dated)
        server.terminate()
        assert server.wait() == 0
    finally:
        server.stop()
