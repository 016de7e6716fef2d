"""What clients may do to the port of a real server: bounded in CPU, memory and time, and the others are served meanwhile.

The first test is the regression test of CVE-2023-33953 (docs/adr/0014): gRPC 1.51 by itself burns 5.7 seconds of CPU on 16 MB of header.
"""

import os
import pathlib
import socket
import struct

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from conftest import Assay, wait_until
from http2_frames import CONTINUATION, DATA, END_HEADERS, HEADERS, PING, PREFACE, REQUEST, RESET, SETTINGS, connect, frame, hpack_length

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(server):
    fields = pathlib.Path(f"/proc/{server.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def send_until_cut(client, pieces):
    """How many bytes went out."""
    sent = 0
    try:
        for piece in pieces:
            client.sendall(piece)
            sent += len(piece)
    except OSError:
        pass
    client.close()
    return sent


def huge_header(megabytes):
    """A literal header that says it is so long, in frames of 16 KiB."""
    size = megabytes << 20
    yield frame(HEADERS, 0, 1, REQUEST + b"\x00" + hpack_length(4) + b"huge" + hpack_length(size))
    for _ in range(size // 16384):
        yield frame(CONTINUATION, 0, 1, b"a" * 16384)


def live(server):
    with grpc.insecure_channel(server.address) as channel:
        status = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30).status
    return status == health_pb2.HealthCheckResponse.SERVING


def served(server):
    try:
        return live(server)
    except grpc.RpcError:
        return False


@pytest.mark.parametrize("megabytes", [1, 4, 16])
def test_a_header_without_end_costs_nothing(server, megabytes):
    assert live(server)
    cpu, memory = cpu_seconds(server), server.resident_bytes()
    send_until_cut(connect(server), huge_header(megabytes))
    assert live(server)
    assert cpu_seconds(server) - cpu < 1
    assert server.resident_bytes() - memory < 2 << 20


def test_the_same_from_many_at_once(server):
    cpu, memory = cpu_seconds(server), server.resident_bytes()
    clients = [connect(server) for _ in range(50)]
    for client in clients:
        send_until_cut(client, huge_header(1))
    assert live(server)
    assert cpu_seconds(server) - cpu < 1
    assert server.resident_bytes() - memory < 8 << 20
    wait_until(lambda: server.metric(r"^assay_grpc_connections ") <= 2)


def test_streams_that_are_reset_at_once(server):
    """Opened and cut, over and over (CVE-2023-44487)."""
    client = connect(server)
    sent = send_until_cut(client, (
        frame(HEADERS, END_HEADERS, stream, REQUEST) + frame(RESET, 0, stream, struct.pack(">I", 8))
        for stream in range(1, 400_001, 2)))
    assert sent < 200_000 * (len(REQUEST) + 22)  # it was cut
    assert live(server)


@pytest.mark.parametrize("kind,payload", [(PING, b"12345678"), (SETTINGS, b""), (DATA, b"")])
def test_control_frames_without_end(server, kind, payload):
    client = connect(server)
    one = frame(kind, 0, 1 if kind == DATA else 0, payload) * 100
    sent = send_until_cut(client, (one for _ in range(5000)))
    assert sent < 5000 * len(one)
    assert live(server)


@pytest.mark.parametrize("bytes_", [b"GET /metrics HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"\x00" * 100, PREFACE[:-1] + b"x"])
def test_what_is_not_http2_is_cut(server, bytes_):
    host, port = server.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.sendall(bytes_)
        try:
            assert client.recv(1000) == b""
        except ConnectionResetError:
            pass
    assert live(server)


def test_who_never_begins_is_cut_and_the_rest_is_served(own_server):
    server = own_server("--limits-handshake-timeout", "1s", "--limits-max-connections-per-address", "0").wait_ready()
    host, port = server.address.rsplit(":", 1)
    silent = [socket.create_connection((host, int(port)), timeout=30) for _ in range(300)]
    assert live(server)
    tokens = list(Assay(server.address).generate("Once", max_tokens=4))
    assert tokens
    for client in silent:
        assert client.recv(10) == b""


def test_too_many_connections_are_turned_away(own_server):
    server = own_server("--limits-max-connections-per-address", "5").wait_ready()
    clients = [connect(server) for _ in range(5)]
    for client in clients:
        assert client.recv(10) != b""
    host, port = server.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=30) as sixth:
        try:
            assert sixth.recv(10) == b""
        except ConnectionResetError:
            pass
    for client in clients:
        client.close()
    wait_until(lambda: served(server))


def test_a_port_for_probes_alone(own_server):
    server = own_server("--health-port", "0").wait_ready()
    port = int(next(line.rsplit(":", 1)[1] for line in server.stderr if line.startswith("  health")))
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "ready"):
            assert health.Check(health_pb2.HealthCheckRequest(service=service), timeout=30).status == 1
        infer = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        with pytest.raises(grpc.RpcError) as refused:
            infer(b"", timeout=30)
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
