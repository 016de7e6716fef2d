"""The real binaries on loopback, with the bundled model and a tiny encoder."""

import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import threading
import time

import grpc
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get("ASSAY_BUILD_DIR", ROOT / "build" / "dev"))
STORIES = ROOT / "data" / "stories260k" / "stories260K-f32.gguf"
GOLDEN = json.loads((ROOT / "data" / "stories260k" / "golden.json").read_text())
START_SECONDS = 240  # generous: the machine may be busy with the rest of the tests


def clean_environment():
    """The caller's environment without what would configure the server or the client."""
    return {k: v for k, v in os.environ.items() if not k.startswith("ASSAY_") and k != "NO_COLOR"}


class Server:
    """An assay-server of our own; its banner is read, its ports are free ones."""

    def __init__(self, folder, *flags, program=(BUILD / "server" / "assay-server",)):
        self.stderr = []
        self.process = subprocess.Popen(
            [*program, "--grpc-port", "0", "--http-port", "0", "--admin-port", "-1", "--admin", "true",
             "--cache-dir", folder / "artifacts", *map(str, flags)],
            stderr=subprocess.PIPE, text=True, env=clean_environment())
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.stderr.append(line.rstrip("\n"))
            if line.startswith("ready in") or '"message":"ready in' in line:
                self._ready.set()
        self._ready.set()

    def wait_ready(self):
        assert self._ready.wait(START_SECONDS) and self.process.poll() is None, self.log()
        return self

    def log(self):
        return "\n".join(self.stderr)

    def _port(self, kind):
        return int(re.search(rf"^  {kind} +127\.0\.0\.1:(\d+)", self.log(), re.M).group(1))

    @property
    def address(self):
        return f"127.0.0.1:{self._port('gRPC')}"

    def http_port(self):
        return self._port("HTTP")

    def get(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port(), timeout=30)
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        return answer.status, body

    def metric(self, pattern):
        """The sum of the series that match."""
        body = self.get("/metrics")[1]
        return sum(float(line.rsplit(" ", 1)[1]) for line in body.splitlines() if re.search(pattern, line))

    def requests(self, outcome, model="stories260k"):
        return self.metric(rf'^assay_inference_requests_total{{model="{model}",outcome="{outcome}"')

    def load(self, model="stories260k"):
        """Sequences in the engine, waiting or running."""
        return self.metric(rf'^assay_inference_(pending|running)_requests{{model="{model}"')

    def resident_bytes(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) * 1024

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout=120):
        code = self.process.wait(timeout)
        self._reader.join(10)
        return code

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)


class Assay:
    """assay.v1 without generated code: message classes from the server's own reflection."""

    def __init__(self, address):
        from google.protobuf.descriptor_pool import DescriptorPool
        from google.protobuf.message_factory import GetMessageClass
        from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

        self.channel = grpc.insecure_channel(address)
        self.database = ProtoReflectionDescriptorDatabase(self.channel)
        pool = DescriptorPool(self.database)
        self.service = pool.FindServiceByName("assay.v1.AssayService")
        self._message = lambda name: GetMessageClass(pool.FindMessageTypeByName("assay.v1." + name))

    def message(self, message_type, /, **fields):
        return self._message(message_type)(**fields)

    def call(self, method, request, timeout=120, metadata=None):
        """A unary answer, or the iterator of a stream."""
        descriptor = self.service.methods_by_name[method]
        answer = self._message(descriptor.output_type.name)
        make = self.channel.unary_stream if descriptor.server_streaming else self.channel.unary_unary
        return make("/assay.v1.AssayService/" + method, type(request).SerializeToString, answer.FromString)(
            request, timeout=timeout, metadata=metadata)

    def generate(self, prompt, model="stories260k", timeout=120, metadata=None, **sampling):
        request = self.message("GenerateRequest", model=model, prompt=prompt,
                               sampling=self.message("SamplingParams", **sampling))
        return self.call("Generate", request, timeout, metadata)


def make_repository(folder):
    """stories260k in Triton's layout, and a BERT with random weights."""
    repository = folder / "models"
    stories = repository / "stories260k" / "1"
    stories.mkdir(parents=True)
    shutil.copy(STORIES, stories)
    shutil.copytree(ROOT / "tests" / "golden" / "models" / "bert_mean", repository / "tiny_bert")
    write_word_piece(repository / "tiny_bert")
    return repository


def write_word_piece(folder):
    """A tokenizer of letters for a checkpoint that came without one."""
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz.,",
             *("##" + letter for letter in "abcdefghijklmnopqrstuvwxyz")][:size]
    special = [{"id": i, "content": words[i], "special": True, "single_word": False, "lstrip": False,
                "rstrip": False, "normalized": False} for i in range(5)]
    single = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
              {"SpecialToken": {"id": "[SEP]", "type_id": 0}}]
    tokens = {w: {"id": w, "ids": [words.index(w)], "tokens": [w]} for w in ("[CLS]", "[SEP]")}
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                       "strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": tokens},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": {w: i for i, w in enumerate(words)}}}))


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    return make_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="session")
def server(tmp_path_factory, repository):
    """One server for all tests that leave it as it was."""
    started = Server(tmp_path_factory.mktemp("server"), "--model-repository", repository,
                     "--grpc-max-message-size", "1MiB", "--strict-readiness", "false").wait_ready()
    yield started
    started.stop()


@pytest.fixture
def own_server(tmp_path, repository):
    """Makes servers that the test may hurt."""
    servers = []

    def start(*flags):
        servers.append(Server(tmp_path, "--model-repository", repository, "--strict-readiness", "false", *flags))
        return servers[-1].wait_ready()

    yield start
    for started in servers:
        started.stop()


@pytest.fixture
def cli(server):
    """Runs `assay` against the server: (exit code, stdout, stderr)."""

    def run(*arguments, address=None, **options):
        done = subprocess.run([BUILD / "cli" / "assay", "--server", address or server.address, *map(str, arguments)],
                              timeout=120, env=clean_environment(),
                              **{"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
                                 **({} if "input" in options else {"stdin": subprocess.DEVNULL}), **options})
        return done.returncode, done.stdout, done.stderr

    return run


def wait_until(condition, seconds=60):
    """Polls, for states that only show from outside the process."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def spoilable(tmp_path):
    """Starts servers of stories260k alone: SIGUSR1 spoils every version that serves, SIGUSR2 the newest."""
    servers = []
    folder = tmp_path / "models" / "stories260k"
    folder.mkdir(parents=True)
    shutil.copy(STORIES, folder)

    def start(*flags):
        server = Server(tmp_path, "--model-repository", tmp_path / "models", *flags,
                        program=(BUILD / "tests" / "e2e" / "spoilable_server", STORIES))
        servers.append(server)
        return server.wait_ready()

    yield start
    for server in servers:
        server.stop()
