"""Clients that do not read what they have asked for: bounded in time and memory, and the others are served."""

import socket

import grpc
import pytest

from conftest import Assay, wait_until
from http2_frames import DATA, END_HEADERS, END_STREAM, HEADERS, INITIAL_WINDOW_SIZE, connect, frame, message, request, setting

CLIENTS = 64
GENERATE = "/assay.v1.AssayService/Generate"
IN_FLIGHT = r'^assay_grpc_rpcs_in_flight{.*method="%s"'


def ask(server, path, serialized, window=0):
    """Asks, and gives the server a window of so many bytes for the answer."""
    client = connect(server, setting(INITIAL_WINDOW_SIZE, window))
    client.sendall(frame(HEADERS, END_HEADERS, 1, request(path)) + frame(DATA, END_STREAM, 1, message(serialized)))
    return client


def all_of(client):
    """What the server has sent, and sends within a moment."""
    client.settimeout(1)
    received = b""
    try:
        while piece := client.recv(1 << 16):
            received += piece
    except (socket.timeout, ConnectionResetError):
        pass
    return received


def generate(assay, max_tokens):
    sampling = assay.message("SamplingParams", max_tokens=max_tokens, ignore_eos=True, logprobs=5)
    return assay.message("GenerateRequest", model="stories260k", prompt="Once upon a time", sampling=sampling).SerializeToString()


def unread(server):
    return server.metric(r"^assay_grpc_unread_rpcs_total ")


def test_streams_that_nobody_reads_are_cut(own_server):
    server = own_server("--limits-max-unread-time", "500ms")
    assay = Assay(server.address)
    expected = "".join(part.text for part in assay.generate("Once", max_tokens=8))
    memory = server.resident_bytes()
    clients = [ask(server, GENERATE, generate(assay, 400)) for _ in range(CLIENTS)]
    wait_until(lambda: server.metric(r'^grpc_server_started_total{.*"Generate"') >= CLIENTS + 1)
    assert "".join(part.text for part in assay.generate("Once", max_tokens=8)) == expected  # others are served
    wait_until(lambda: unread(server) == CLIENTS)
    wait_until(lambda: server.metric(IN_FLIGHT % "Generate") == 0)
    assert server.load() == 0 and server.metric(r'^assay_llm_kv_cache_blocks{.*state="used"') == 0
    # Of a stream: 400 tokens with five alternatives each, and what gRPC has of it.
    assert server.resident_bytes() - memory < CLIENTS * (1 << 20)
    # Trailers are not held up by the window: who looks is told.
    assert all(b"limits.max_unread_time" in all_of(client) for client in clients)
    assert any("did not read" in line for line in server.stderr)


@pytest.mark.parametrize("window", [0, 100])
def test_answers_that_nobody_reads_are_cut(own_server, window):
    """Unary ones, whose status has been given already: a window that is full before the answer is."""
    server = own_server("--limits-max-unread-time", "500ms")
    assay = Assay(server.address)
    embed = assay.message("EmbedRequest", model="tiny_bert", texts=["a few words"] * 20).SerializeToString()
    clients = [ask(server, "/assay.v1.AssayService/Embed", embed, window) for _ in range(8)]
    wait_until(lambda: unread(server) == len(clients))
    wait_until(lambda: server.metric(IN_FLIGHT % "Embed") == 0)
    for client in clients:
        client.close()


def test_a_drain_does_not_wait_for_who_does_not_read(own_server):
    server = own_server("--limits-max-unread-time", "500ms", "--drain-timeout", "10m")
    assay = Assay(server.address)
    clients = [ask(server, GENERATE, generate(assay, 400)) for _ in range(4)]
    wait_until(lambda: server.metric(r'^grpc_server_started_total{.*"Generate"') >= 4)
    server.terminate()
    assert server.wait(timeout=60) == 0
    for client in clients:
        client.close()


def test_who_reads_slowly_is_not_cut(own_server):
    """Opens the window a little at a time, each time before the bound: each message takes a while, none too long."""
    server = own_server("--limits-max-unread-time", "2s")
    assay = Assay(server.address)
    client = ask(server, GENERATE, generate(assay, 100), window=200)
    client.settimeout(0.2)
    received = b""
    while b"grpc-status" not in received:
        try:
            received += client.recv(1 << 16)
        except socket.timeout:
            client.sendall(frame(8, 0, 1, (1000).to_bytes(4, "big")))  # WINDOW_UPDATE
    assert b"limits.max_unread_time" not in received
    assert unread(server) == 0


def test_the_bound_may_be_off(own_server):
    server = own_server("--limits-max-unread-time", "0")
    assay = Assay(server.address)
    client = ask(server, GENERATE, generate(assay, 50))
    wait_until(lambda: server.metric(r'^assay_llm_requests_total{.*finish_reason="length"') == 1)
    assert server.metric(IN_FLIGHT % "Generate") == 1
    client.sendall(frame(8, 0, 1, (1 << 20).to_bytes(4, "big")))
    wait_until(lambda: server.metric(IN_FLIGHT % "Generate") == 0)
    assert b"limits.max_unread_time" not in all_of(client)
    with grpc.insecure_channel(server.address) as channel:
        assert channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=30)
