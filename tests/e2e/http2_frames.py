"""HTTP/2 by hand, for what no client library would send."""

import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9
END_STREAM, END_HEADERS = 1, 4
HEADER_TABLE_SIZE, INITIAL_WINDOW_SIZE = 1, 4  # numbers of settings


def frame(kind, flags, stream, payload):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def hpack_length(n):
    if n < 127:
        return bytes([n])
    n, out = n - 127, bytes([127])
    while n >= 128:
        n, out = n // 128, out + bytes([n % 128 + 128])
    return out + bytes([n])


def literal(name, value):
    return b"\x00" + hpack_length(len(name)) + name + hpack_length(len(value)) + value


def request(path):
    return b"".join(literal(name, value) for name, value in (
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()),
        (b":authority", b"x"), (b"content-type", b"application/grpc"), (b"te", b"trailers")))


REQUEST = request("/inference.GRPCInferenceService/ServerLive")


def setting(number, value):
    return struct.pack(">HI", number, value)


def message(serialized):
    """As gRPC frames it, not compressed."""
    return b"\0" + struct.pack(">I", len(serialized)) + serialized


def connect(server, settings=b"", address=None):
    host, port = (address or server.address).rsplit(":", 1)
    client = socket.create_connection((host, int(port)), timeout=30)
    client.sendall(PREFACE + frame(SETTINGS, 0, 0, settings))
    return client
