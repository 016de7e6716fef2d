"""Runs clang-tidy over files that it has not yet seen in this state. usage: tidy.py BUILD_DIRECTORY JOBS FILE.cc...

A file that passed is remembered in ASSAY_CACHE/tidy by the digest of its text, of the headers of ours that it includes
(directly or not), and of .clang-tidy, so that a second run costs nothing.
"""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
CACHE = pathlib.Path(os.environ.get("ASSAY_CACHE", pathlib.Path.home() / ".cache" / "assay")) / "tidy"


def closure(path, seen):
    """Adds `path` and what it includes of ours to `seen`."""
    if path in seen or not path.is_file():
        return
    seen.add(path)
    for included in INCLUDE.findall(path.read_text()):
        closure(ROOT / included, seen)


def digest(path):
    """Names the state of a file for the cache."""
    files = set()
    closure(path, files)
    sha = hashlib.sha256((ROOT / ".clang-tidy").read_bytes())
    for file in sorted(files):
        sha.update(f"{file.relative_to(ROOT)}\n".encode())
        sha.update(file.read_bytes())
    return sha.hexdigest()


def check(build, path):
    """Returns what clang-tidy says about one file, "" when it passes."""
    passed = CACHE / digest(path)
    if passed.exists():
        return ""
    result = subprocess.run(["clang-tidy-14", "--quiet", "-p", build, str(path)], capture_output=True, text=True)
    if result.returncode:
        return result.stdout + (result.stderr if "error:" not in result.stdout else "")
    passed.touch()
    return ""


def main():
    build, jobs, names = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    CACHE.mkdir(parents=True, exist_ok=True)
    database = {entry["file"] for entry in json.loads((pathlib.Path(build) / "compile_commands.json").read_text())}
    paths = [path for path in (ROOT / name for name in names) if str(path) in database]
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        reports = list(pool.map(lambda path: check(build, path), paths))
    failures = [report for report in reports if report]
    print("".join(failures), end="")
    print(f"clang-tidy: {len(paths)} files, {len(failures)} with findings")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
