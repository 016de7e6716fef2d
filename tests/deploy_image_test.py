"""The container image: rules of its Containerfile, its list of contents, and, where buildah and podman are, the image itself:
built, looked into, and its server started from it, hardened. The base comes from deploy/docker/make_base, once.
"""

import http.client
import io
import json
import os
import pathlib
import re
import shutil
import socket
import stat
import subprocess
import sys
import tarfile
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCKER = ROOT / "deploy" / "docker"
BUILD = pathlib.Path(os.environ.get("ASSAY_BUILD_DIR", ROOT / "build" / "dev"))
STORIES = ROOT / "data" / "stories260k" / "stories260K-f32.gguf"
CACHE = pathlib.Path(os.environ.get("ASSAY_CACHE", pathlib.Path.home() / ".cache" / "assay")) / "image"
START_SECONDS = 240  # generous: the machine may be busy with other tests
MOST_COMPRESSED, MOST_UNPACKED = 80_000_000, 250_000_000  # bytes; goals of the project
PROGRAMS = {"assay", "assay-server", "flock"}
LABELS = {"org.opencontainers.image." + name for name in ("title", "description", "version", "revision", "created")}
sys.path.insert(0, str(DOCKER))

import sbom  # noqa: E402


# --- The Containerfile

def instructions(text):
    """(word, argument) of each instruction, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.strip().split(None, 1)) for line in text.splitlines() if line.strip()]


def base_problems(steps):
    """A base is a stage, or an argument whose default has a tag other than latest (or a digest) and names no registry."""
    defaults = dict(argument.split("=", 1) for word, argument in steps if word == "ARG" and "=" in argument)
    stages, found = {"scratch"}, []
    for argument in (argument for word, argument in steps if word == "FROM"):
        name, _, stage = argument.partition(" AS ")
        if name not in stages:
            image = defaults.get(name.strip("${}"), "") if name.startswith("${") else None
            if image is None:
                found.append(f"FROM {name}: not an argument")
            elif not re.search(r"@sha256:[0-9a-f]{64}$|:[\w.-]+$", image) or image.endswith(":latest"):
                found.append(f"FROM {name}: not pinned: {image!r}")
            elif "/" in image and re.search(r"[.:]|^localhost$", image.split("/")[0]):
                found.append(f"FROM {name}: names a registry: {image}")
        stages.add(stage)
    return found


def step_problems(word, argument):
    if word == "ADD":
        return [f"ADD {argument}: COPY is for files, nothing is for URLs"]
    if word in {"ENTRYPOINT", "CMD"} and not argument.startswith("["):
        return [f"{word}: not in exec form: {argument}"]
    if word == "RUN" and re.search(r"apt-get|/compile\b", argument) and "rm -rf /var/lib/apt/lists/*" not in argument:
        return [f"RUN {argument}: leaves apt's lists"]
    if word in {"ARG", "ENV"} and re.search(r"(?i)password|token|secret|NVIDIA_VISIBLE", argument):
        return [f"{word} {argument}: does not belong into an image"]
    return []


def containerfile_problems(text):
    steps = instructions(text)
    found = base_problems(steps) + [line for step in steps for line in step_problems(*step)]
    last = steps[max(index for index, (word, _) in enumerate(steps) if word == "FROM"):]
    words = [word for word, _ in last]
    users = [argument for word, argument in last if word == "USER"]
    if not users or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]):
        found.append(f"USER: not a number other than 0: {users[-1:]}")
    elif set(words[words.index("USER"):]) & {"RUN", "COPY"}:
        found.append("USER: not last")
    if words.count("ENTRYPOINT") != 1 or ("STOPSIGNAL", "SIGTERM") not in last:
        found.append("no ENTRYPOINT, or no STOPSIGNAL SIGTERM")
    labels = " ".join(argument for word, argument in last if word == "LABEL")
    found += [f"LABEL: no {name}" for name in sorted(LABELS) if f"{name}=" not in labels]
    return found


def test_the_containerfile_keeps_the_rules():
    assert containerfile_problems((DOCKER / "Containerfile").read_text()) == []


@pytest.mark.parametrize("old, new, problem", [
    ("ARG BASE=debian:bookworm-slim", "ARG BASE=debian:latest", "FROM ${BASE}: not pinned: 'debian:latest'"),
    ("ARG BASE=debian:bookworm-slim", "ARG BASE=debian", "FROM ${BASE}: not pinned: 'debian'"),
    ("ARG BASE=debian:bookworm-slim", "ARG BASE=registry.example.org/debian:12", "FROM ${BASE}: names a registry: registry.example.org/debian:12"),
    ("FROM ${BASE} AS build", "FROM debian:bookworm-slim AS build", "FROM debian:bookworm-slim: not an argument"),
    ("USER 65532:65532", "USER assay", "USER: not a number other than 0: ['assay']"),
    ("USER 65532:65532", "USER 0:0", "USER: not a number other than 0: ['0:0']"),
    ("USER 65532:65532", "", "USER: not a number other than 0: []"),
    ("USER 65532:65532", "USER 65532:65532\nCOPY a /", "USER: not last"),
    ("COPY . /src", "ADD https://example.org/a /src", "ADD https://example.org/a /src: COPY is for files, nothing is for URLs"),
    (" && rm -rf /var/lib/apt/lists/*", "", "RUN /src/deploy/docker/compile: leaves apt's lists"),
    ('ENTRYPOINT ["/usr/bin/assay-server"]', "ENTRYPOINT assay-server", "ENTRYPOINT: not in exec form: assay-server"),
    ("STOPSIGNAL SIGTERM", "", "no ENTRYPOINT, or no STOPSIGNAL SIGTERM"),
    ("ARG JOBS=", "ARG TOKEN=", "ARG TOKEN=: does not belong into an image"),
    ("image.revision", "image.other", "LABEL: no org.opencontainers.image.revision")])
def test_catches_a_containerfile_with(old, new, problem):
    text = (DOCKER / "Containerfile").read_text()
    assert old in text
    assert problem in containerfile_problems(text.replace(old, new))


def test_versions_agree():
    version = re.search(r"project\(assay VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text())[1]
    assert ("ARG", f"VERSION={version}") in instructions((DOCKER / "Containerfile").read_text())
    assert f"assay:{version}" in (ROOT / "docs" / "deploy.md").read_text()


def test_packages_come_without_what_they_recommend():
    for line in re.findall(r"apt-get .*install .*", (DOCKER / "compile").read_text()):
        assert "--no-install-recommends" in line


# --- The program that builds

def run_build(*arguments, **environment):
    return subprocess.run([sys.executable, DOCKER / "build", *map(str, arguments)], capture_output=True, text=True, env={**os.environ, **environment})


def with_tools(folder, *names):
    """A PATH with nothing but programs of these names, which fail."""
    for name in names:
        (folder / name).write_text("#!/bin/sh\nexit 99\n")
        (folder / name).chmod(0o755)
    return {"PATH": str(folder)}


def test_says_what_it_can_do():
    answer = run_build("--help")
    assert answer.returncode == 0 and "--prebuilt DIR" in answer.stdout and "--timestamp SECONDS" in answer.stdout


@pytest.mark.parametrize("tools, arguments, message", [
    ([], [], "build: neither buildah nor docker is installed"),
    (["docker"], ["--tool", "buildah"], "build: buildah is not installed"),
    (["docker"], ["--isolation", "chroot"], "build: --isolation, --volume, --storage-driver and --storage are for buildah"),
    (["buildah"], ["--prebuilt", "/nowhere"], "build: --prebuilt: dpkg-query, ldd, strip not installed"),
    (["buildah", "dpkg-query", "ldd", "strip"], ["--prebuilt", "/nowhere"], "build: --prebuilt: no assay-server and assay in /nowhere"),
    (["buildah", "dpkg-query", "ldd", "strip"], ["--cuda", "--prebuilt", "/nowhere"], "build: --cuda says how to compile;"),
    (["buildah"], ["--timestamp", "yesterday"], "argument --timestamp: invalid int value: 'yesterday'")])
def test_refuses(tmp_path, tools, arguments, message):
    (tmp_path / "bin").mkdir()
    answer = run_build("--output", tmp_path / "out" / "a.oci.tar", *arguments, **with_tools(tmp_path / "bin", *tools))
    assert answer.returncode != 0 and message in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_failed_build_leaves_no_archive(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "a.oci.tar").write_text("of an earlier build")
    answer = run_build("--output", tmp_path / "a.oci.tar", **with_tools(tmp_path / "bin", "buildah"))
    assert answer.returncode != 0 and "build: buildah failed with status 99" in answer.stderr
    assert not (tmp_path / "a.oci.tar").exists()


# --- The list of contents

def listed_tree(root):
    """A small image with a true list."""
    for name, text in (("usr/bin/a", "a"), ("usr/lib/libc++.so.6", "c")):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text(text)
    (root / "lib").symlink_to("usr/lib")
    common = {"architecture": "amd64", "source": "gcc-12"}
    packages = [{"kind": "own", "name": "assay", "version": "1", "supplier": "NOASSERTION", **common},
                {"kind": "library", "name": "libc++", "version": "2:1.0-1+deb12u1", "supplier": sbom.DEBIAN, **common},
                {"kind": "compiled-in", "name": "cudart", "version": "13.0", "supplier": "Organization: NVIDIA", **common}]
    owners = {"usr/bin/a": "assay", "usr/lib/libc++.so.6": "libc++"}
    document = sbom.document(root, packages, owners, "abc", 1_700_000_000, "debian-12")
    (root / sbom.PLACE).parent.mkdir(parents=True)
    (root / sbom.PLACE).write_text(json.dumps(document))
    return document


def test_lists_packages_and_files(tmp_path):
    document = listed_tree(tmp_path)
    assert sbom.problems(tmp_path) == []
    assert document["creationInfo"]["created"] == "2023-11-14T22:13:20Z"
    assert [entry["externalRefs"][0]["referenceLocator"] for entry in document["packages"]] == [
        "pkg:generic/assay@1", "pkg:deb/debian/libc%2B%2B@2%3A1.0-1%2Bdeb12u1?arch=amd64&distro=debian-12&upstream=gcc-12", "pkg:generic/cudart@13.0"]
    kinds = [(entry["spdxElementId"], entry["relationshipType"], entry["relatedSpdxElement"]) for entry in document["relationships"]]
    # Section 7.9: SHA-1 of the sorted SHA-1 sums of the files; of one file here: sha1(sha1("a")), by sha1sum.
    assert document["packages"][0]["packageVerificationCode"] == {"packageVerificationCodeValue": "eee411109a229046154bc9d75265a9ccb23a3a9c"}
    assert kinds == [("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-assay"), ("SPDXRef-assay", "DEPENDS_ON", "SPDXRef-library-libc.2b..2b."),
                     ("SPDXRef-assay", "STATIC_LINK", "SPDXRef-compiled-in-cudart"), ("SPDXRef-assay", "CONTAINS", "SPDXRef-file-usr.2f.bin.2f.a"),
                     ("SPDXRef-library-libc.2b..2b.", "CONTAINS", "SPDXRef-file-usr.2f.lib.2f.libc.2b..2b..so.6")]


@pytest.mark.parametrize("spoil, problem", [
    (lambda root: (root / "usr/bin/b").write_text("b"), "usr/bin/b: in the image, not in the list"),
    (lambda root: (root / "usr/bin/a").unlink(), "usr/bin/a: in the list, not in the image"),
    (lambda root: (root / "usr/bin/a").write_text("b"), "usr/bin/a: other bytes than listed"),
    (lambda root: (root / sbom.PLACE).unlink(), f"{sbom.PLACE}: is not there")])
def test_catches_an_image_that_is_not_what_its_list_says(tmp_path, spoil, problem):
    listed_tree(tmp_path)
    spoil(tmp_path)
    assert sbom.problems(tmp_path) == [problem]
    answer = subprocess.run([sys.executable, DOCKER / "sbom.py", tmp_path], capture_output=True, text=True)
    assert (answer.returncode, answer.stdout) == (1, f"{problem}\n")


@pytest.mark.parametrize("spoil, problem", [
    (lambda document: document.update(spdxVersion="SPDX-2.2"), "spdxVersion: 'SPDX-2.2'"),
    (lambda document: document["packages"][1].update(versionInfo=""), "SPDXRef-library-libc.2b..2b.: no versionInfo"),
    (lambda document: document["packages"][0].update(filesAnalyzed=False), "SPDXRef-assay: not the code of its 1 files"),
    (lambda document: document["packages"][0].pop("packageVerificationCode"), "SPDXRef-assay: not the code of its 1 files"),
    (lambda document: document["packages"].pop(), "relationship with SPDXRef-compiled-in-cudart, which is not there"),
    (lambda document: document["relationships"].pop(), "usr/lib/libc++.so.6: of no package"),
    (lambda document: document["files"][0].update(SPDXID="SPDXRef-a/b"), "SPDXRef-a/b: not an SPDX identifier")])
def test_catches_a_list_out_of_form(tmp_path, spoil, problem):
    document = listed_tree(tmp_path)
    spoil(document)
    (tmp_path / sbom.PLACE).write_text(json.dumps(document))
    assert problem in sbom.problems(tmp_path)


# --- The image

class Store:
    """Images and containers apart from the user's own, with the base in it."""

    def __init__(self):
        missing = [tool for tool in ("buildah", "podman", "runc", "strip") if not shutil.which(tool)]
        bases = sorted(CACHE.glob("base-*.tar"))
        if missing:
            pytest.skip(f"NOT RUN: {', '.join(missing)} not installed; the image is not tried")
        if os.geteuid() != 0:
            pytest.skip("NOT RUN: not root; the image is not tried")
        if not bases:
            pytest.skip(f"NOT RUN: no base in {CACHE} (deploy/docker/make_base); the image is not tried")
        if not all((BUILD / place).is_file() for place in ("server/assay-server", "cli/assay")):
            pytest.skip(f"NOT RUN: no assay-server and assay in {BUILD}; the image is not tried")
        self.base = f"localhost/assay-{bases[-1].stem}:{int(bases[-1].stat().st_mtime)}"
        self.driver = next((driver for driver in ("overlay", "vfs") if self._holds_base(driver, bases[-1])), None)
        assert self.driver, f"podman cannot import {bases[-1]}"

    def _command(self, driver):
        place = CACHE / "storage"
        return ["podman", "--root", str(place / "images"), "--runroot", str(place / "run"), "--storage-driver", driver]

    def _holds_base(self, driver, tar):
        command = self._command(driver)
        if subprocess.run([*command, "image", "exists", self.base], capture_output=True).returncode == 0:
            return True
        earlier = subprocess.run([*command, "images", "--quiet", self.base.rsplit(":", 1)[0]], capture_output=True, text=True).stdout.split()
        if earlier:
            subprocess.run([*command, "rmi", "--force", *earlier], capture_output=True)
        return subprocess.run([*command, "import", "--quiet", str(tar), self.base], capture_output=True).returncode == 0

    def podman(self, *arguments, code=0):
        answer = subprocess.run([*self._command(self.driver), *map(str, arguments)], capture_output=True, text=True, timeout=START_SECONDS)
        assert code is None or answer.returncode == code, f"{arguments}: {answer.returncode}\n{answer.stdout}{answer.stderr}"
        return answer

    def build(self, tag, output):
        answer = run_build("--prebuilt", BUILD, "--base", self.base, "--isolation", "chroot", "--network", "host", "--storage", CACHE / "storage",
                           "--storage-driver", self.driver, "--tag", tag, "--output", output, "--timestamp", 1_700_000_000)
        assert answer.returncode == 0, answer.stdout[-4000:] + answer.stderr[-4000:]
        return answer.stdout.splitlines()[-4:]


class Image:
    """The built image: its name, its archive, and its one layer unpacked."""

    def __init__(self, store, folder):
        self.store, self.tag, self.folder = store, f"localhost/assay-test:{os.getpid()}", folder
        self.archive = folder / "assay.oci.tar"
        self.said = store.build(self.tag, self.archive)
        with tarfile.open(self.archive) as archive:
            index = json.load(archive.extractfile("index.json"))
            self.digest = index["manifests"][0]["digest"]
            self.manifest = json.loads(self._blob(archive, self.digest))
            self.config = json.loads(self._blob(archive, self.manifest["config"]["digest"]))["config"]
            with tarfile.open(fileobj=io.BytesIO(self._blob(archive, self.manifest["layers"][0]["digest"]))) as layer:
                self.entries = {entry.name.strip("./"): entry for entry in layer}
                layer.extractall(folder / "root")

    @staticmethod
    def _blob(archive, digest):
        return archive.extractfile(f"blobs/{digest.replace(':', '/')}").read()


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    store = Store()
    built = Image(store, tmp_path_factory.mktemp("image"))
    yield built
    store.podman("rmi", "--force", built.tag, code=None)
    store.podman("image", "prune", "--force", code=None)


def test_image_is_small(image, capsys):
    compressed = sum(layer["size"] for layer in image.manifest["layers"])
    unpacked = sum(entry.size for entry in image.entries.values())
    with capsys.disabled():
        print(f"\n{image.said[0]}")
    assert f"{compressed / 1e6:.1f} MB compressed, {unpacked / 1e6:.1f} MB unpacked" in image.said[0]
    assert len(image.manifest["layers"]) == 1
    assert compressed <= MOST_COMPRESSED and unpacked <= MOST_UNPACKED


def test_image_says_how_it_runs(image):
    config = image.config
    assert (config["User"], config["Entrypoint"], config["StopSignal"]) == ("65532:65532", ["/usr/bin/assay-server"], "SIGTERM")
    assert set(config["ExposedPorts"]) == {"8001/tcp", "8002/tcp"} and "Cmd" not in config
    assert LABELS <= set(config["Labels"])
    assert config["Labels"]["org.opencontainers.image.created"] == "2023-11-14T22:13:20Z"


def test_image_list_is_true(image):
    assert sbom.problems(image.folder / "root") == []
    document = json.loads((image.folder / "root" / sbom.PLACE).read_text())
    assert (image.folder / "assay.spdx.json").read_text() == (image.folder / "root" / sbom.PLACE).read_text()
    debian = {entry["name"] for entry in document["packages"] if "pkg:deb" in entry["externalRefs"][0]["referenceLocator"]}
    assert {"libc6", "libgrpc++1.51", "libssl3", "util-linux", "libcli11-dev"} <= debian or "libgrpc++1.51t64" in debian
    with_entry = {path.name for path in (image.folder / "root/var/lib/dpkg/status.d").iterdir()}
    with_licence = {path.parent.name for path in (image.folder / "root/usr/share/doc").glob("*/copyright")}
    assert with_entry == with_licence == debian - {"libcli11-dev", "nlohmann-json3-dev"}


def test_image_has_no_shell_and_its_user_may_write_to_mount_points_only(image):
    entries = image.entries
    assert {path.name for path in (image.folder / "root/usr/bin").iterdir()} == PROGRAMS
    is_executable = {name for name, entry in entries.items() if entry.isfile() and entry.mode & 0o111}
    assert is_executable == {f"usr/bin/{name}" for name in PROGRAMS} | {"usr/lib64/ld-linux-x86-64.so.2"}
    # A new volume takes over the owner of the folder that it is mounted on.
    assert {name for name, entry in entries.items() if entry.uid != 0 or entry.gid != 0} == {"cache"}
    assert [name for name, entry in entries.items() if not entry.issym() and entry.mode & (stat.S_IWOTH | stat.S_ISUID | stat.S_ISGID)] == ["tmp"]


def test_image_is_the_same_when_it_is_built_again(image, tmp_path):
    again = image.store.build(image.tag, tmp_path / "again.oci.tar")
    assert again[1].strip() == image.said[1].strip() == image.digest


class Container:
    """The server in the image, as docs/deploy.md starts it."""

    def __init__(self, image, ports):
        self.image, self.ports, self.name = image, ports, f"assay-test-{os.getpid()}"
        models = image.folder / "models" / "stories260k"
        models.mkdir(parents=True, exist_ok=True)
        shutil.copy(STORIES, models / "model.gguf")
        for folder in (image.folder.parent, image.folder, models.parent, models):
            folder.chmod(0o755)
        # runc, and limits that this process may set: crun and podman's own do not run everywhere.
        self.hardened = ["--runtime", "runc", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096", "--network", "host", "--read-only",
                         "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--memory", "1g", "--tmpfs", "/tmp",
                         "--volume", f"{models.parent}:/models:ro", "--volume", f"{self.name}:/cache"]

    def run(self, command):
        entrypoint = json.dumps(command)
        return self.image.store.podman("run", "--rm", *self.hardened, "--entrypoint", entrypoint, self.image.tag)

    def start(self):
        flags = [word for name, port in self.ports.items() for word in (f"--{name}-port", port)]
        self.image.store.podman("run", "--detach", "--name", self.name, *self.hardened, self.image.tag, *flags, "--model-repository", "/models",
                                "--cache-dir", "/cache")
        deadline = time.monotonic() + START_SECONDS
        while self.health("ready") != "SERVING":
            assert self.inspect("State.Running") == "true" and time.monotonic() < deadline, self.log()
            time.sleep(0.1)

    def exec(self, *command, code=0):
        return self.image.store.podman("exec", self.name, *command, code=code)

    def health(self, service):
        """As the kubelet asks. None: no answer."""
        with grpc.insecure_channel(f"127.0.0.1:{self.ports['health']}") as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            except grpc.RpcError:
                return None
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

    def inspect(self, field):
        return self.image.store.podman("inspect", "--format", "{{." + field + "}}", self.name).stdout.strip()

    def log(self):
        answer = self.image.store.podman("logs", self.name, code=None)
        return answer.stdout + answer.stderr

    def process(self):
        """/proc/PID/status of the server."""
        text = pathlib.Path(f"/proc/{self.inspect('State.Pid')}/status").read_text()
        return dict(re.findall(r"^(\w+):\s*(.*)$", text, re.MULTILINE))

    def metrics(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.ports["http"], timeout=30)
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()

    def remove(self):
        self.image.store.podman("rm", "--force", self.name, code=None)
        self.image.store.podman("volume", "rm", "--force", self.name, code=None)


@pytest.fixture
def container(image):
    sockets = [socket.socket() for _ in range(3)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    made = Container(image, dict(zip(("grpc", "http", "health"), (one.getsockname()[1] for one in sockets))))
    for one in sockets:
        one.close()
    yield made
    made.remove()


def test_image_quantizes_serves_and_drains_in_a_hardened_container(container):
    # The chart's init container, on the volume that the server gets next.
    container.run(["flock", "/cache/.quantize.lock", "assay", "quantize", "/models/stories260k", "--output", "/cache"])
    container.start()
    assert re.search(r"\d+ cores?, 1\.0 GiB", container.log()), container.log()  # the server plans with the limit
    assert 'assay_artifact_cache_requests_total{result="hit"} 1' in container.metrics()
    assert container.health("") == "SERVING"

    process = container.process()
    assert process["Uid"].split() == ["65532"] * 4 and process["CapEff"] == process["CapBnd"] == "0" * 16
    assert (process["NoNewPrivs"], process["Seccomp"]) == ("1", "2")
    assert container.exec("flock", "/tmp/lock", "assay", "--version").stdout.startswith("assay ")
    for place in ("/lock", "/usr/bin/lock", "/models/lock"):
        assert "Read-only file system" in container.exec("flock", place, "assay", "--version", code=None).stderr
    assert container.exec("sh", "-c", "true", code=None).returncode == 127

    server = f"127.0.0.1:{container.ports['grpc']}"
    told = container.exec("assay", "--server", server, "generate", "stories260k", "Once upon a time", "--max-tokens", "8").stdout
    assert len(told.split()) >= 3, told
    assert container.exec("assay", "--server", f"127.0.0.1:{container.ports['health']}", "health", "ready").stdout.strip() == "SERVING"

    container.image.store.podman("stop", "--time", 60, container.name)
    assert container.inspect("State.ExitCode") == "0", container.log()
    assert "stopped clean=true" in container.log()
