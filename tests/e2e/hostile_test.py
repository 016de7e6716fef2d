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
from http2_frames import (CONTINUATION, DATA, END_HEADERS, HEADERS, PING, PREFACE, REQUEST, RESET, SETTINGS, connect, frame, hpack_length,
                          literal, request)

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


@pytest.mark.parametrize("port", ["data", "health"])
def test_streams_of_who_never_acknowledges_settings(own_server, port):
    """gRPC 1.51 holds a client to max_concurrent_streams only once it has acknowledged SETTINGS."""
    server = own_server("--health-port", "0").wait_ready()
    address = server.address
    if port == "health":
        number = next(line.rsplit(":", 1)[1] for line in server.stderr if line.startswith("  health"))
        address = f"127.0.0.1:{int(number)}"
    client = connect(server, address=address)
    before = server.resident_bytes()
    watch = request("/grpc.health.v1.Health/Watch")  # not ended: the stream stays
    streams = (frame(HEADERS, END_HEADERS, stream, watch) for stream in range(1, 200_001, 2))
    sent = send_until_cut(client, streams)
    assert sent < 20_000 * (len(watch) + 9)  # what the kernel's buffers took before the cut was seen
    # 256 streams of 64 KiB at most; a hundred thousand took more than a gigabyte.
    assert server.resident_bytes() - before < 16 << 20
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


# ---- header blocks within the bound

def header_block(stream, fields):
    """HEADERS and CONTINUATION of one request, with these fields after those that every request has."""
    payload = REQUEST + fields
    pieces = [payload[at:at + 16384] for at in range(0, len(payload), 16384)]
    frames = [frame(CONTINUATION if at else HEADERS, END_HEADERS if at + 1 == len(pieces) else 0, stream, piece)
              for at, piece in enumerate(pieces)]
    return b"".join(frames)


BLOCK = (64 << 10) - len(REQUEST)
BIG = b"\x40" + hpack_length(4) + b"bomb" + hpack_length(3900) + b"b" * 3900  # goes into the dynamic table
BLOCKS = {
    "many_small": literal(b"a", b"b") * (BLOCK // 5),
    "without_names": b"\x00\x00\x00" * (BLOCK // 3),
    "table_entries": b"\x40\x01a\x01b" * (BLOCK // 5),
    "table_sizes": b"\x20\x3f\xe1\x1f" * (BLOCK // 4),  # to 0 and back to 4096
    "one_entry_again_and_again": BIG + b"\xbe" * (BLOCK - len(BIG)),  # 60,000 times 3.9 KB in 64 KiB
    "large_fields": literal(b"a" * 120, b"b" * 120) * 250,  # just few enough
    "no_such_entry": b"\xff\xff\x7f" * (BLOCK // 3),
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_header_blocks_just_within_the_bound(server, kind):
    """Two hundred of each, on two connections: 13 MB of what costs the most to take apart. gRPC by itself is at 700 MB after some."""
    assert live(server)
    cpu, memory = cpu_seconds(server), server.resident_bytes()
    for _ in range(2):
        send_until_cut(connect(server), (header_block(stream, BLOCKS[kind]) for stream in range(1, 201, 2)))
    assert live(server)
    print(kind, cpu_seconds(server) - cpu, server.resident_bytes() - memory)
    assert cpu_seconds(server) - cpu < 1
    # At worst all of them are alive at once, each as it came and taken apart: 25 MiB.
    assert server.resident_bytes() - memory < 2 * 200 * (64 << 10)


# ---- messages that are none

MALFORMED = {
    "longer_than_it_is": b"\x0a\xff\xff\xff\xff\x0f",
    "cut": b"\x0a\x05ab",
    "number_without_end": b"\xff" * 11,
    "group_without_end": b"\x0b",
    "end_without_group": b"\x0c",
    "field_0": b"\x00\x00",
    "nested_groups": b"\x0b" * 10_000,
}


def test_malformed_messages_to_every_method(server):
    """An error of gRPC each time, whatever the method; the server lives."""
    assay = Assay(server.address)
    services = [assay.service, assay.service.file.pool.FindServiceByName("inference.GRPCInferenceService")]
    answered = []
    for method in (method for service in services for method in service.methods):
        path = f"/{method.containing_service.full_name}/{method.name}"
        kind = ("stream" if method.client_streaming else "unary") + "_" + ("stream" if method.server_streaming else "unary")
        for name, data in MALFORMED.items():
            call = getattr(assay.channel, kind)(path)
            try:
                answer = call(iter([data]) if method.client_streaming else data, timeout=30)
                # gRPC ends a stream of requests at a message that is none, as if the client had ended it.
                if not method.client_streaming or list(answer):
                    answered.append((path, name, list(answer) if method.server_streaming else answer))
            except grpc.RpcError as error:
                assert error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED,
                                        grpc.StatusCode.CANCELLED), (path, name, error)
    assert len(services[0].methods) + len(services[1].methods) > 30
    assert answered == []
    assert live(server)


# ---- clients that are not there any more

def test_who_answers_no_ping_is_dropped(own_server):
    """A host that has vanished without a word, to gRPC: streams are open, nothing comes any more."""
    server = own_server("--grpc-keepalive-time", "1s", "--grpc-keepalive-timeout", "1s")
    clients = [connect(server) for _ in range(10)]
    for client in clients:
        client.sendall(frame(HEADERS, END_HEADERS, 1, REQUEST))
    wait_until(lambda: server.metric(r"^assay_grpc_connections ") == 10)
    wait_until(lambda: server.metric(r"^assay_grpc_connections ") == 0)
    wait_until(lambda: server.metric(r"^assay_grpc_rpcs_in_flight") == 0)


# ---- the HTTP port

def http_connection(server):
    return socket.create_connection(("127.0.0.1", server.http_port()), timeout=30)


def is_cut(client):
    try:
        return client.recv(1000) == b""
    except ConnectionResetError:
        return True


def refused(server, reason):
    return server.metric(rf'^assay_connections_refused_total{{reason="{reason}"')


def test_http_requests_that_dribble_hold_up_nobody(own_server):
    """More of them than civetweb has threads, for longer than it is asked anything else."""
    server = own_server("--limits-handshake-timeout", "2s", "--limits-max-connections-per-address", "0")
    slow = [http_connection(server) for _ in range(200)]
    for client in slow:
        client.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
    for _ in range(20):
        assert server.get("/healthz") == (200, "ok\n")
    # The scrape, and those that have not been cut already.
    assert server.metric(r"^assay_http_connections ") > 1
    assert all(is_cut(client) for client in slow)
    assert refused(server, "too_slow") == 200
    wait_until(lambda: server.metric(r"^assay_http_connections ") == 1)


@pytest.mark.parametrize("request_", [b"GET /" + b"a" * (1 << 20), b"POST / HTTP/1.1\r\nContent-Length: 100000000\r\n\r\n" + b"b" * (1 << 20),
                                      b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 100_000],
                         ids=["url", "body", "headers"])
def test_http_requests_without_end_are_cut(server, request_):
    before = refused(server, "limit")
    sent = send_until_cut(http_connection(server), (request_[:1 << 16] for _ in range(1000)))
    assert sent < 1000 << 16
    assert refused(server, "limit") == before + 1
    assert server.get("/healthz")[0] == 200


def test_http_requests_that_are_long_have_an_answer(server):
    assert server.get("/" + "a" * 10_000)[0] == 404
    assert server.get("/" + "a" * 20_000)[0] in (400, 413, 414, 431)  # civetweb's own bound is 16 KiB


def test_too_many_http_connections_are_turned_away(own_server):
    server = own_server("--limits-max-connections-per-address", "5").wait_ready()
    clients = [http_connection(server) for _ in range(5)]
    assert is_cut(http_connection(server))
    for client in clients:
        client.close()

    def healthy():
        try:
            return server.get("/healthz")[0] == 200
        except OSError:
            return False

    wait_until(healthy)
    assert refused(server, "too_many") >= 1
    assert live(server)  # the gRPC port counts for itself
