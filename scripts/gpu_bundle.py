"""What scripts/gpu_check needs on a machine that has CUDA, but neither a network nor this project's packages: collected here.

DIRECTORY/usr: headers, libraries and CMake files of Debian's packages, as they lie under /usr. DIRECTORY/prebuilt: what the
target gpu_check built, stripped, for where building fails. DIRECTORY/links.json: symbolic links, for copies that lose them. What
is large is compressed (.xz) until restore().
"""

import json
import lzma
import pathlib
import re
import shutil
import subprocess

PACKAGES = ("libabsl-dev", "libspdlog-dev", "libfmt-dev", "nlohmann-json3-dev", "libicu-dev",
            "libpcre2-dev", "liblzma-dev", "libssl-dev", "libgtest-dev", "libgmock-dev")
LIBRARIES = re.compile(r"lib(absl_\w+|spdlog|fmt|icuuc|icudata|pcre2-8|lzma|crypto|ssl)\.so$")
STATIC = re.compile(r"lib(gtest|gmock)(_main)?\.a$")
CMAKE = re.compile(r"/(lib/x86_64-linux-gnu|share)/cmake/.*\.cmake$")
HEADERS = re.compile(r"/usr/include/(x86_64-linux-gnu/)?"
                     r"(absl|spdlog|fmt|nlohmann|unicode|lzma|openssl|gtest|gmock)/.*|.*/(pcre2|lzma)\.h$")
MOST_BYTES = 64 << 20
COMPRESSED_FROM = 3 << 20


class BundleError(RuntimeError):
    pass


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def files_of(packages):
    try:
        return sorted(set(output("dpkg", "-L", *packages).split("\n")))
    except (OSError, subprocess.CalledProcessError) as error:
        raise BundleError(f"not all of these Debian packages are installed: {' '.join(packages)}: {error}") from error


def soname(library):
    found = re.search(r"SONAME\s+(\S+)", output("objdump", "-p", str(library)))
    return found[1] if found else library.name


class Prefix:
    """A copy of parts of /usr."""

    def __init__(self, directory):
        self.directory, self.links = directory, {}

    def place(self, path):
        # What compilers of Debian's look for in the folder of the architecture lies beside the rest: others do not look there.
        path = str(path).replace("/usr/include/x86_64-linux-gnu/", "/usr/include/")
        target = self.directory / pathlib.Path(path).relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def copy(self, path):
        shutil.copy2(path, self.place(path))

    def library(self, link):
        """A shared library under its soname, its other names as links."""
        real = pathlib.Path(link).resolve()
        target = self.place(str(pathlib.Path(link).parent / soname(real)))
        shutil.copy2(real, target)
        for name in {pathlib.Path(link).name, real.name} - {target.name}:
            self.links[str((target.parent / name).relative_to(self.directory))] = target.name


def compress(path):
    """Leaves path.xz instead."""
    with lzma.open(f"{path}.xz", "wb", preset=2) as file:
        file.write(path.read_bytes())
    path.unlink()


def restore(directory):
    """What is compressed, and those of links.json that are not there."""
    for packed in directory.rglob("*.xz"):
        target = packed.with_suffix("")
        if not target.is_file():
            with lzma.open(packed) as file:
                target.write_bytes(file.read())
            target.chmod(0o755)
    for path, target in json.loads((directory / "links.json").read_text()).items():
        link = directory / path
        if not link.is_file():
            link.unlink(missing_ok=True)
            link.symlink_to(target)


def collect(directory):
    """DIRECTORY/usr anew, from the packages installed here."""
    shutil.rmtree(directory / "usr", ignore_errors=True)
    prefix = Prefix(directory)
    for path in files_of(PACKAGES):
        if LIBRARIES.search(path):
            prefix.library(path)
        elif (STATIC.search(path) or CMAKE.search(path) or HEADERS.fullmatch(path)) and pathlib.Path(path).is_file():
            prefix.copy(path)
    (directory / "links.json").write_text(json.dumps(prefix.links, indent=0))
    for path in [path for path in (directory / "usr").rglob("*.so*") if not path.is_symlink()]:
        if path.stat().st_size >= COMPRESSED_FROM:
            compress(path)
    restore(directory)


def add_prebuilt(directory, build):
    """DIRECTORY/prebuilt anew: tests and libraries of a build of the target gpu_check."""
    prebuilt = directory / "prebuilt"
    shutil.rmtree(prebuilt, ignore_errors=True)
    prebuilt.mkdir(parents=True)
    for path in programs(build):
        shutil.copy2(path, prebuilt / path.name)
        subprocess.run(["strip", str(prebuilt / path.name)], check=True)
        compress(prebuilt / path.name)


def programs(build):
    """Tests and libraries below a folder that was built, or prebuilt."""
    found = [path for pattern in ("*_gpu_test", "cuda_runtime_test", "libassay_kernels*.so", "libfake_cublas_lt.so")
             for path in build.rglob(pattern) if path.is_file()]
    return sorted(found, key=lambda path: path.name)


def drop_restored(directory):
    """What restore() can make again, links too: some copies follow them."""
    for packed in directory.rglob("*.xz"):
        packed.with_suffix("").unlink(missing_ok=True)
    for link in json.loads((directory / "links.json").read_text()):
        (directory / link).unlink(missing_ok=True)


def size(directory):
    """Bytes that travel: without what restore() makes."""
    return sum(path.stat().st_size for path in directory.rglob("*")
               if path.is_file() and not path.is_symlink() and not path.with_name(path.name + ".xz").is_file())


def foreign_inputs(build):
    """Headers and libraries of the bundled packages that a build took from the machine instead of from a bundle."""
    return foreign_in(output("ninja", "-C", str(build), "-t", "deps") + (build / "build.ninja").read_text())


def foreign_in(text):
    used = set(re.findall(r"(?<![^\s=:,])/usr/(?:include|lib|share)/[^\s:|]+", text))
    return sorted(path for path in used if HEADERS.fullmatch(path) or LIBRARIES.search(path) or STATIC.search(path))
