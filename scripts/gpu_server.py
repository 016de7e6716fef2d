"""The second mode of scripts/gpu_check: a whole server, built elsewhere, serves a model on the GPU that is here.

DIRECTORY/bin: assay-server and assay, stripped; DIRECTORY/lib: the shared libraries that they need, but for the C library's;
DIRECTORY/models/stories260k: the bundled model. What is large is compressed (.xz) as in gpu_bundle.py.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import time

import gpu_bundle

PROGRAMS = ("server/assay-server", "cli/assay")
OF_THE_C_LIBRARY = re.compile(r"(linux-vdso|ld-linux|libc|libm|libpthread|libdl|librt|libresolv)\b")
PROMPT = "Once upon a time, there was a little"
READY_SECONDS = 240
MOST_BYTES = 60 << 20


class ServerError(RuntimeError):
    pass


def libraries_of(program):
    """{soname: path} of what the dynamic linker loads for it, but for the C library."""
    listing = subprocess.run(["ldd", str(program)], check=True, capture_output=True, text=True).stdout
    missing = re.findall(r"(\S+) => not found", listing)
    if missing:
        raise ServerError(f"{program} lacks {' '.join(missing)}")
    return {name: path for name, path in re.findall(r"(\S+) => (/\S+)", listing) if not OF_THE_C_LIBRARY.match(name)}


def collect(directory, build, model):
    """DIRECTORY anew, of a build with the server."""
    absent = [name for name in PROGRAMS if not (build / name).is_file()]
    if absent:
        raise ServerError(f"not built: {' '.join(str(build / name) for name in absent)}")
    shutil.rmtree(directory, ignore_errors=True)
    for folder in ("bin", "lib", "models/stories260k"):
        (directory / folder).mkdir(parents=True)
    for name in PROGRAMS:
        target = directory / "bin" / pathlib.Path(name).name
        shutil.copy2(build / name, target)
        subprocess.run(["strip", str(target)], check=True)
        for soname, path in libraries_of(build / name).items():
            shutil.copy2(pathlib.Path(path).resolve(), directory / "lib" / soname)
    shutil.copy2(model, directory / "models" / "stories260k")
    (directory / "links.json").write_text("{}")
    for path in [*(directory / "bin").iterdir(), *(directory / "lib").iterdir()]:
        gpu_bundle.compress(path)


class Server:
    """A server from the bundle, on free ports of loopback; it ends with the block."""

    def __init__(self, directory, log, *flags):
        self.directory, self.log, self.flags = directory, log, flags
        # Nothing of the caller's: its settings are not this server's.
        self.environment = {**{k: v for k, v in os.environ.items() if not k.startswith("ASSAY_")},
                            "LD_LIBRARY_PATH": str(directory / "lib")}

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        with open(self.log, "w") as file:
            self.process = subprocess.Popen(
                [self.directory / "bin" / "assay-server", "--model-repository", self.directory / "models", "--grpc-port", "0",
                 "--http-port", "0", "--admin-port", "-1", "--cache-dir", pathlib.Path(self.folder.name) / "artifacts", *self.flags],
                stdout=file, stderr=subprocess.STDOUT, env=self.environment)
        end = time.monotonic() + READY_SECONDS
        while "\nready in" not in self.log.read_text():
            if self.process.poll() is not None or time.monotonic() > end:
                self.__exit__()
                raise ServerError(f"the server did not get ready: {self.log.read_text()[-400:]}")
            time.sleep(0.2)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.folder.cleanup()

    def client(self, command, *arguments):
        address = re.search(r"gRPC +(\S+)", self.log.read_text())[1]
        answer = subprocess.run([self.directory / "bin" / "assay", command, "--server", address, *arguments], capture_output=True,
                                text=True, env=self.environment, timeout=120)
        if answer.returncode != 0:
            raise ServerError(f"assay {command}: {answer.stderr.strip()[-400:]}")
        return answer.stdout


def served(directory, log, *flags):
    """(device, scheme, what it answers) of one server."""
    with Server(directory, log, *flags) as server:
        decision = json.loads(server.client("report", "stories260k", "--json"))["decision"]
        text = server.client("generate", "stories260k", PROMPT, "--max-tokens", "24", "--temperature", "0")
    return decision["device"], decision["recipe"]["scheme"], text.strip()


def serve(directory, out, dry):
    """What was seen, in a line. ServerError: what is wrong. `dry`: there is no GPU, and the server says so."""
    gpu_bundle.restore(directory)
    for program in (directory / "bin").iterdir():
        program.chmod(0o755)
    device, scheme, text = served(directory, out / "server.log")
    log = (out / "server.log").read_text()
    if dry and (device != "cpu" or "no GPU in use: CUDA: " not in log):
        raise ServerError(f"without a GPU it serves on {device}, and its banner says: {log[:200]}")
    if not dry and not device.startswith("cuda:"):
        raise ServerError(f"with a GPU it serves on {device}: see the decision in {out / 'server.log'}")
    _, host_scheme, host_text = served(directory, out / "server-cpu.log", "--gpu-devices", "none")
    if not text or not host_text:
        raise ServerError("it answers nothing")
    same = "the same text as on the CPU" if text == host_text else f"another text than on the CPU ({host_scheme}): {host_text!r}"
    return f"{device}, {scheme}: {text!r}, {same}"
