"""Who may do what: ports, tokens, certificates, quotas, paths, against the real binaries."""

import contextlib
import hashlib
import http.client
import pathlib
import shlex
import shutil
import ssl
import subprocess

import grpc
import pytest
from conftest import BUILD, STORIES, Assay, Server, clean_environment, wait_until

INFER, OBSERVE, ADMIN = "token-of-a-client-7f", "token-of-a-probe-2c", "token-of-an-operator-91"
SECRETS = (INFER, OBSERVE, ADMIN, *(hashlib.sha256(t.encode()).hexdigest() for t in (INFER, OBSERVE, ADMIN)))


def tokens_file(path, **entries):
    """`name: (roles, token)` as the server reads it."""
    lines = [f"{name} {roles} {hashlib.sha256(token.encode()).hexdigest()}\n" for name, (roles, token) in entries.items()]
    path.write_text("# of a test\n" + "".join(lines))
    return path


@pytest.fixture
def tokens(tmp_path):
    return tokens_file(tmp_path / "tokens", client=("infer", INFER), probe=("observe", OBSERVE), ops=("admin", ADMIN))


def bearer(token):
    return (("authorization", "Bearer " + token),)


def port(server, kind):
    return f"127.0.0.1:{server._port(kind)}"


def assay(*arguments, **environment):
    done = subprocess.run([BUILD / "cli" / "assay", *map(str, arguments)], timeout=120, text=True, stdin=subprocess.DEVNULL,
                          capture_output=True, env={**clean_environment(), **environment})
    return done.returncode, done.stdout, done.stderr


def code_of(call):
    with pytest.raises(grpc.RpcError) as caught:
        list(call) if hasattr(call, "__iter__") else call()
    return caught.value.code()


def get(server, path, token=None, context=None):
    """Status and body."""
    if context is None:
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port(), timeout=30)
    else:
        connection = http.client.HTTPSConnection("127.0.0.1", server.http_port(), timeout=30, context=context)
    connection.request("GET", path, headers={} if token is None else {"Authorization": "Bearer " + token})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body


# ---- ports

def test_administration_is_on_its_own_port(own_server, tmp_path):
    server = own_server("--admin", "false", "--admin-port", "0")
    other = shutil.copy(STORIES, tmp_path / "other.gguf")
    code, _, err = assay("--server", server.address, "admit", other, "--name", "other")
    assert code == 1 and "admin_port" in err
    assert assay("--server", server.address, "unload", "stories260k")[0] == 1
    code, _, err = assay("--admin-server", port(server, "admin"), "admit", other, "--name", "other")
    assert code == 0, err
    assert assay("--server", port(server, "admin"), "unload", "other")[0] == 0  # where only --server is given
    code, out, _ = assay("status", ASSAY_SERVER=server.address)
    assert code == 0 and "stories260k" in out
    assert assay("unload", "stories260k", ASSAY_SERVER=server.address, ASSAY_ADMIN_SERVER=port(server, "admin"))[0] == 0
    assert server.metric(r'^assay_auth_refused_total\{reason="port"\}') == 2


def test_no_number_of_connections_reaches_the_descriptors_of_administration(tmp_path, repository):
    """Of 512 descriptors the last 128 are the admin port's: 150 data connections, of three each, come up to them."""
    server = Server(tmp_path, "--model-repository", repository, "--strict-readiness", "false", "--admin", "false", "--admin-port", "0",
                    "--limits-max-connections-per-address", "0",
                    program=("sh", "-c", 'ulimit -n 512; exec "$0" "$@"', BUILD / "server" / "assay-server"))
    try:
        server.wait_ready()
        channels = [grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(150)]
        answers = []
        for channel in channels:
            unload = channel.unary_unary("/inference.GRPCInferenceService/RepositoryModelUnload")
            answers.append(code_of(lambda: unload(b"", timeout=60)))
        assert set(answers) == {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAVAILABLE}
        assert answers.count(grpc.StatusCode.PERMISSION_DENIED) >= 50
        assert assay("--admin-server", port(server, "admin"), "unload", "stories260k")[0] == 0
        for channel in channels:
            channel.close()
    finally:
        server.stop()


# ---- tokens

def test_tokens_open_what_their_role_says(own_server, tokens):
    server = own_server("--admin", "false", "--admin-port", "0", "--auth-tokens", tokens)
    client = Assay(server.address)  # reflection asks for no token
    assert code_of(client.generate("Once", max_tokens=2)) == grpc.StatusCode.UNAUTHENTICATED
    assert list(client.generate("Once", max_tokens=2, metadata=bearer(INFER)))
    assert code_of(client.generate("Once", max_tokens=2, metadata=bearer(OBSERVE))) == grpc.StatusCode.PERMISSION_DENIED
    assert list(client.generate("Once", max_tokens=2, metadata=bearer(ADMIN)))
    health = client.channel.unary_unary("/grpc.health.v1.Health/Check")
    assert health(b"", timeout=30)

    for path in ("/healthz", "/readyz"):
        assert get(server, path)[0] == 200
    for path in ("/", "/metrics", "/models/stories260k/1/report.json"):
        assert get(server, path)[0] == 401
        assert get(server, path, "wrong")[0] == 401
        assert get(server, path, INFER)[0] == 403
        assert get(server, path, OBSERVE)[0] == 200


def test_administration_needs_the_role_on_its_port_too(own_server, tokens, tmp_path):
    server = own_server("--admin", "false", "--admin-port", "0", "--auth-tokens", tokens)
    files = {}
    for name, token in (("infer", INFER), ("admin", ADMIN)):
        files[name] = tmp_path / f"{name}.token"
        files[name].write_text(token + "\n")
    admin = ("--admin-server", port(server, "admin"))
    code, _, err = assay(*admin, "unload", "stories260k")
    assert code == 1 and "token" in err
    code, _, err = assay(*admin, "--token-file", files["infer"], "unload", "stories260k")
    assert code == 1 and "role 'admin'" in err
    code, _, err = assay("--server", server.address, "--token-file", files["admin"], "unload", "stories260k")
    assert code == 1 and "admin_port" in err
    assert assay(*admin, "unload", "stories260k", ASSAY_TOKEN_FILE=str(files["admin"]))[0] == 0


def test_tokens_are_read_again(own_server, tokens):
    server = own_server("--auth-tokens", tokens, "--tls-reload-interval", "50ms")
    client = Assay(server.address)
    live = client.channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
    assert live(b"", timeout=30, metadata=bearer(INFER))
    tokens.write_text("client infer\n")
    wait_until(lambda: "the tokens are not renewed" in server.log())
    assert ":1:" in server.log()
    assert live(b"", timeout=30, metadata=bearer(INFER))
    tokens_file(tokens, newcomer=("infer", "another-token"))
    wait_until(lambda: "tokens renewed" in server.log())
    assert live(b"", timeout=30, metadata=bearer("another-token"))
    assert code_of(lambda: live(b"", timeout=30, metadata=bearer(INFER))) == grpc.StatusCode.UNAUTHENTICATED
    assert server.log().count("the tokens are not renewed") == 1


def test_a_bad_file_of_tokens_ends_the_start(tmp_path):
    bad = tmp_path / "tokens"
    bad.write_text(f"client infer {INFER}\n")
    done = subprocess.run([BUILD / "server" / "assay-server", "--auth-tokens", bad], capture_output=True, text=True, timeout=60,
                          env=clean_environment())
    assert done.returncode == 1 and f"auth.tokens: {bad}:1:" in done.stderr and INFER not in done.stderr


def test_no_token_shows_anywhere(own_server, tokens, tmp_path):
    server = own_server("--admin", "true", "--auth-tokens", tokens, "--log-level", "debug", "--auth-tokens-per-minute", "5",
                        "--auth-max-concurrent", "4")
    client = Assay(server.address)
    said = []
    for token in (INFER, OBSERVE, ADMIN, ADMIN + "x"):
        for method in ("Promote", "ListModels", "Generate", "Admit"):
            request = client.message(method + "Request")
            try:
                answer = client.call(method, request, metadata=bearer(token))
                said += map(str, answer if hasattr(answer, "__iter__") else [answer])
            except grpc.RpcError as error:
                said += [error.details(), str(error.trailing_metadata())]
        file = tmp_path / "one.token"
        file.write_text(token)
        said += assay("--server", server.address, "--token-file", file, "status")[1:]
        for path in ("/", "/metrics", "/models/stories260k/1/report", "/" + token):
            said.append(get(server, path, token)[1] if path != "/" + token else "")
    for _ in range(2):
        try:
            said += map(str, client.generate("Once upon a time", max_tokens=8, metadata=bearer(INFER)))
        except grpc.RpcError as error:
            said += [error.details(), str(error.trailing_metadata())]
    config = subprocess.run([BUILD / "server" / "assay-server", "--auth-tokens", tokens, "--check-config"],
                            capture_output=True, text=True, timeout=60, env=clean_environment())
    assert config.returncode == 0 and str(tokens) in config.stdout
    server.terminate()
    server.wait()
    everything = "\n".join([*map(str, said), server.log(), config.stdout, config.stderr])
    assert len(everything) > 1000 and "role" in everything  # it was listened to
    assert [secret for secret in SECRETS if secret in everything] == []


# ---- who did what

def audited(server):
    """The log's lines about administration, as dictionaries."""
    lines = [shlex.split(line) for line in server.stderr if " administration client=" in line]
    return [dict(word.split("=", 1) for word in line[3:]) for line in lines]


def test_every_call_of_administration_is_one_line_of_the_log(own_server, tokens):
    server = own_server("--admin", "false", "--admin-port", "0", "--auth-tokens", tokens)
    admin, data = Assay(port(server, "admin")), Assay(server.address)
    for method in ("RepositoryModelUnload", "RepositoryModelLoad"):
        admin.channel.unary_unary("/inference.GRPCInferenceService/" + method)(
            b"\x12\x0bstories260k", timeout=120, metadata=bearer(ADMIN))  # model_name
    for method in ("Promote", "RollBack", "DropCanary", "SetCanaryShare"):
        request = admin.message(method + "Request", model="stories260k")
        assert code_of(lambda m=method, r=request: admin.call(m, r, metadata=bearer(ADMIN))) == grpc.StatusCode.FAILED_PRECONDITION
    assert code_of(admin.call("Admit", admin.message("AdmitRequest", path="/etc/passwd"), metadata=bearer(ADMIN))) \
        == grpc.StatusCode.PERMISSION_DENIED
    promote = admin.message("PromoteRequest", model="other")
    assert code_of(lambda: admin.call("Promote", promote, metadata=bearer(INFER))) == grpc.StatusCode.PERMISSION_DENIED
    assert code_of(lambda: admin.call("Promote", promote)) == grpc.StatusCode.UNAUTHENTICATED
    assert code_of(lambda: data.call("Promote", promote, metadata=bearer(ADMIN))) == grpc.StatusCode.PERMISSION_DENIED
    wait_until(lambda: len(audited(server)) == 10)
    rows = [(line["client"], line["method"], line["model"], line["outcome"]) for line in audited(server)]
    assert rows == [
        ("ops", "RepositoryModelUnload", "stories260k", "OK"),
        ("ops", "RepositoryModelLoad", "stories260k", "OK"),
        *(("ops", method, "stories260k", "FAILED_PRECONDITION") for method in ("Promote", "RollBack", "DropCanary", "SetCanaryShare")),
        ("ops", "Admit", "/etc/passwd", "PERMISSION_DENIED"),
        ("client", "Promote", "other", "PERMISSION_DENIED"),
        ("", "Promote", "other", "UNAUTHENTICATED"),
        ("ops", "Promote", "other", "PERMISSION_DENIED")]
    assert {line["peer"] for line in audited(server)} == {"127.0.0.1"}
    assert [secret for secret in SECRETS if secret in server.log()] == []


def test_no_method_of_administration_is_left_out_of_the_log(own_server, tokens):
    """Whatever is refused where no administration is served is administration."""
    server = own_server("--admin", "false", "--admin-port", "-1", "--auth-tokens", tokens)
    client = Assay(server.address)
    refused = []
    for service in (client.service, client.service.file.pool.FindServiceByName("inference.GRPCInferenceService")):
        for method in service.methods:
            kind = ("stream" if method.client_streaming else "unary") + "_" + ("stream" if method.server_streaming else "unary")
            call = getattr(client.channel, kind)(f"/{service.full_name}/{method.name}")
            try:
                answer = call(iter([b""]) if method.client_streaming else b"", timeout=30, metadata=bearer(ADMIN))
                list(answer) if method.server_streaming else answer
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.PERMISSION_DENIED:
                    refused.append(method.name)
    assert len(refused) >= 7
    wait_until(lambda: len(audited(server)) >= len(refused))
    assert [line["method"] for line in audited(server)] == refused


def test_the_log_of_administration_names_the_certificate(own_server, authority):
    certificate, key = authority.sign("server")
    server = own_server("--tls-certificate", certificate, "--tls-key", key, "--tls-client-ca", authority.certificate)
    with channel_to(server.address, authority.certificate, authority.sign("operator")) as channel:
        unload = channel.unary_unary("/inference.GRPCInferenceService/RepositoryModelUnload")
        assert code_of(lambda: unload(b"", timeout=30)) == grpc.StatusCode.NOT_FOUND
    wait_until(lambda: audited(server))
    line = audited(server)[0]
    assert (line["certificate"], line["client"], line["outcome"]) == ("CN=operator", "", "NOT_FOUND")


# ---- quotas

def test_tokens_per_minute_are_refused_with_a_time_to_come_again(own_server, tokens):
    server = own_server("--auth-tokens", tokens, "--auth-tokens-per-minute", "10")
    client = Assay(server.address)
    assert list(client.generate("Once upon a time", max_tokens=20, ignore_eos=True, metadata=bearer(INFER)))
    call = client.generate("Once", max_tokens=1, metadata=bearer(INFER))
    assert code_of(call) == grpc.StatusCode.RESOURCE_EXHAUSTED and "auth.tokens_per_minute" in call.details()
    pushback = int(dict(call.trailing_metadata())["grpc-retry-pushback-ms"])
    # 20 tokens and the prompt of 10: a debt of at least 10 tokens is two minutes, of which at most one is said.
    assert pushback == 60000
    assert list(client.generate("Once", max_tokens=1, metadata=bearer(ADMIN)))  # another client
    assert 'assay_quota_rejected_total{quota="tokens"} 1' in get(server, "/metrics", OBSERVE)[1]


def test_requests_at_once_are_bounded_by_client(own_server):
    server = own_server("--auth-max-concurrent", "1")
    client = Assay(server.address)
    running = client.generate("Once", max_tokens=400, ignore_eos=True)
    next(running)
    call = client.generate("Once", max_tokens=1)  # of the same address
    assert code_of(call) == grpc.StatusCode.RESOURCE_EXHAUSTED and "auth.max_concurrent" in call.details()
    assert dict(call.trailing_metadata())["grpc-retry-pushback-ms"] == "100"
    running.cancel()
    wait_until(lambda: server.load() == 0)
    assert list(client.generate("Once", max_tokens=1))


# ---- paths

def test_with_tokens_only_files_below_the_roots_are_admitted(own_server, tokens, tmp_path):
    roots = tmp_path / "roots"
    roots.mkdir()
    shutil.copy(STORIES, roots / "inside.gguf")
    outside = shutil.copy(STORIES, tmp_path / "outside.gguf")
    (roots / "link.gguf").symlink_to(outside)
    server = own_server("--auth-tokens", tokens, "--model-roots", roots)
    client = Assay(server.address)

    def admit(path):
        return client.call("Admit", client.message("AdmitRequest", path=str(path), name="new"), metadata=bearer(ADMIN))

    for path in (outside, roots / "link.gguf", f"{roots}/../outside.gguf", f"{roots}/%2e%2e/outside.gguf", tmp_path / "none.gguf"):
        call = admit(path)
        assert code_of(call) == grpc.StatusCode.PERMISSION_DENIED and "model_roots" in call.details()
    assert list(admit(roots / "inside.gguf"))[-1].verdict == "admitted"


# ---- certificates

class Authority:
    """Signs certificates; EC keys, by the command `openssl`."""

    def __init__(self, folder, name):
        self.folder, self.name = folder, name
        self.certificate = folder / f"{name}.pem"
        self.key = folder / f"{name}.key"
        self._openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                      "-subj", f"/CN={name}", "-keyout", self.key, "-out", self.certificate)

    @staticmethod
    def _openssl(*arguments):
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=60)

    def sign(self, name, days=1):
        """Certificate and key for 127.0.0.1; `days` -1: it has expired."""
        certificate, key, request = (self.folder / f"{name}.{kind}" for kind in ("pem", "key", "csr"))
        extensions = self.folder / "extensions"
        extensions.write_text("subjectAltName=IP:127.0.0.1\n")
        self._openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
                      "-keyout", key, "-out", request)
        self._openssl("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.key, "-CAcreateserial",
                      "-days", days, "-extfile", extensions, "-out", certificate)
        return certificate, key


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path, "authority")


def channel_to(address, ca, pair=None):
    certificate, key = (file.read_bytes() for file in pair) if pair else (None, None)
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(ca.read_bytes(), key, certificate),
                               options=[("grpc.use_local_subchannel_pool", 1)])


def live(channel, seconds=30):
    return channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=seconds, metadata=bearer(INFER))


def listening_ports(pid):
    """Of a process, on IPv4."""
    sockets = set()
    for link in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            sockets.add(str(link.readlink()))
    rows = [line.split() for line in pathlib.Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].split(":")[1], 16) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}


def test_all_ports_speak_tls_only(own_server, authority, tokens, tmp_path):
    certificate, key = authority.sign("server")
    server = own_server("--admin", "false", "--admin-port", "0", "--tls-certificate", certificate, "--tls-key", key,
                        "--auth-tokens", tokens)
    for kind in ("gRPC", "admin"):
        with channel_to(port(server, kind), authority.certificate) as channel:
            assert live(channel)
        with grpc.insecure_channel(port(server, kind)) as channel:
            assert code_of(lambda: live(channel, 5)) in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    trusting = ssl.create_default_context(cafile=authority.certificate)
    assert get(server, "/healthz", context=trusting) == (200, "ok\n")
    assert get(server, "/metrics", context=trusting)[0] == 401
    status, page = get(server, "/metrics", OBSERVE, context=trusting)
    assert status == 200 and "assay_tls_certificate_expiry_timestamp_seconds" in page and page.rstrip().count("\n") > 100
    with pytest.raises((ConnectionError, http.client.HTTPException, OSError)):
        get(server, "/healthz")
    with pytest.raises(ssl.SSLError):
        get(server, "/healthz", context=ssl.create_default_context())  # an authority that it does not know

    file = tmp_path / "client.token"
    file.write_text(ADMIN)
    tls = ("--ca", authority.certificate, "--token-file", file)
    assert assay("--server", server.address, *tls, "status")[0] == 0
    assert assay("--server", server.address, "--token-file", file, "--timeout", "5", "status")[0] == 2
    assert assay("--admin-server", port(server, "admin"), *tls, "unload", "stories260k")[0] == 0
    forwarded = server.address.replace("127.0.0.1", "localhost")  # the certificate has the address alone
    code, _, err = assay("--server", forwarded, *tls, "--timeout", "10", "status")
    assert code == 2 and "--server-name" in err and "localhost" in err
    assert assay("--server", forwarded, *tls, "--server-name", "127.0.0.1", "status")[0] == 0
    code, _, err = assay("--server", server.address, "--ca", tmp_path / "none.pem", "status")
    assert code == 1 and "--ca" in err and "none.pem" in err
    code, _, err = assay("--server", server.address, "--cert", certificate, "status")
    assert code == 1 and "--cert and --key" in err


def test_the_plain_port_behind_the_http_port_serves_nobody_else(own_server, authority):
    certificate, key = authority.sign("server")
    server = own_server("--tls-certificate", certificate, "--tls-key", key)
    assert get(server, "/healthz", context=ssl.create_default_context(cafile=authority.certificate))[0] == 200
    inside = listening_ports(server.process.pid) - {server._port("gRPC"), server._port("HTTP")}
    assert len(inside) == 1
    connection = http.client.HTTPConnection("127.0.0.1", inside.pop(), timeout=30)
    connection.request("GET", "/metrics")
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        connection.getresponse()


def test_clients_need_a_certificate_where_one_is_asked_for(own_server, authority, tmp_path):
    certificate, key = authority.sign("server")
    server = own_server("--tls-certificate", certificate, "--tls-key", key, "--tls-client-ca", authority.certificate)
    mine, stale = authority.sign("client"), authority.sign("stale", days=-1)
    foreign = Authority(tmp_path, "foreign").sign("stranger")
    with channel_to(server.address, authority.certificate, mine) as channel:
        assert live(channel)
    for pair in (None, stale, foreign):
        with channel_to(server.address, authority.certificate, pair) as channel:
            assert code_of(lambda: live(channel, 5)) in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    context = ssl.create_default_context(cafile=authority.certificate)
    with pytest.raises((OSError, http.client.HTTPException)):
        get(server, "/metrics", context=context)
    context.load_cert_chain(*mine)
    assert get(server, "/metrics", context=context)[0] == 200
    tls = ("--ca", authority.certificate, "--cert", mine[0], "--key", mine[1])
    assert assay("--server", server.address, *tls, "status")[0] == 0


def test_a_renewed_certificate_is_in_force_for_who_comes_next(own_server, authority, tmp_path):
    certificate, key = authority.sign("server")
    server = own_server("--tls-certificate", certificate, "--tls-key", key, "--tls-reload-interval", "50ms")
    old = channel_to(server.address, authority.certificate)
    assert live(old)
    successor = Authority(tmp_path, "successor")
    new_certificate, new_key = successor.sign("renewed")
    new_key.replace(key)
    new_certificate.replace(certificate)
    wait_until(lambda: "certificate renewed" in server.log())
    assert live(old)  # the connection that was there
    with channel_to(server.address, successor.certificate) as channel:
        assert live(channel)
    with channel_to(server.address, authority.certificate) as channel:
        assert code_of(lambda: live(channel, 5)) in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert get(server, "/healthz", context=ssl.create_default_context(cafile=successor.certificate))[0] == 200
    with pytest.raises(ssl.SSLError):
        get(server, "/healthz", context=ssl.create_default_context(cafile=authority.certificate))
    old.close()
