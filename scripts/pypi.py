"""Takes files out of wheels from PyPI, pinned by sha256. Standard library only; run with any Python that has pip.

usage: pypi.py NAME==VERSION SHA256 MEMBER_PREFIX DIRECTORY

Downloads the wheel with `pip download --no-deps`, which verifies the digest, and copies what lies under MEMBER_PREFIX
in it to DIRECTORY. DIRECTORY appears whole or not at all.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile


class FetchError(Exception):
    """The wheel cannot be had, is not the pinned one, or lacks the members. The message is for the user."""


def download(requirement, sha256, directory):
    """Returns the path of the verified wheel in `directory`."""
    pins = pathlib.Path(directory) / "pin.txt"
    pins.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes",
               "--retries=1", "--timeout=15", "--disable-pip-version-check", "--dest", directory, "--requirement", str(pins)]
    if sys.stderr.isatty():
        result = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    else:
        result = subprocess.run([*command, "--progress-bar=off"], capture_output=True, text=True)
    wheels = sorted(pathlib.Path(directory).glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        reason = errors[-1].removeprefix("ERROR: ") if errors else f"pip exited with {result.returncode}"
        raise FetchError(f"cannot download {requirement}: {reason}")
    return wheels[0]


def unpack(wheel, prefix, directory):
    """Copies the members under `prefix` (which is stripped) into `directory`. A prefix that names a file is that file."""
    taken = 0
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if member.is_dir() or not member.filename.startswith(prefix):
                continue
            relative = member.filename.removeprefix(prefix).lstrip("/") or pathlib.Path(member.filename).name
            target = (pathlib.Path(directory) / relative).resolve()
            if not target.is_relative_to(pathlib.Path(directory).resolve()):
                raise FetchError(f"{wheel.name} has a member outside of its folder: {member.filename}")
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, open(target, "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            taken += 1
    if not taken:
        raise FetchError(f"{wheel.name} holds nothing under {prefix}")


def fetch(requirement, sha256, prefix, directory):
    """Downloads, verifies and unpacks. An existing `directory` is replaced."""
    directory = pathlib.Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=directory.parent) as scratch:
        wheel = download(requirement, sha256, scratch)
        fresh = pathlib.Path(scratch) / "unpacked"
        fresh.mkdir()
        unpack(wheel, prefix, fresh)
        if directory.exists():
            shutil.rmtree(directory)
        os.rename(fresh, directory)


def main():
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    try:
        fetch(*sys.argv[1:])
    except (FetchError, OSError, zipfile.BadZipFile) as error:
        sys.exit(f"{pathlib.Path(sys.argv[0]).name}: {error}")


if __name__ == "__main__":
    main()
