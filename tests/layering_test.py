"""Includes point downwards only, and third parties stay in their files (design: one direction, docs/architecture.md).

Plain program, too: layering_test.py [ROOT] prints the violations.
"""

import fnmatch
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = {".h", ".cc", ".cu", ".cuh"}
INCLUDE = re.compile(r'\s*#\s*include\s+["<]([^">]+)[">]')
OURS = ("base", "quant", "engine", "proto", "server", "cli")

# Module -> what it may include, as prefixes of paths. The longest module that a file lies in is its own.
METRICS = "engine/metrics.h"
MAY_SEE = {
    "base": (),
    "quant": ("base/",),
    "engine": ("base/", "quant/"),
    "engine/ops": ("base/", "quant/"),
    "engine/model": ("base/", "quant/", "engine/ops/"),
    "engine/graph": ("base/", "quant/", "engine/ops/"),
    "engine/runtime": ("base/", "quant/", "engine/ops/", "engine/model/", "engine/graph/", METRICS),
    "engine/lifecycle": ("base/", "quant/", "engine/"),
    "server": ("base/", "quant/", "engine/", "proto/"),
    "cli": ("base/", "quant/", "engine/", "proto/"),
}

# Include prefix -> the files that may name it. Whatever else a header of ours needs goes behind one of them.
CONFINED = {
    "yaml-cpp/": ("quant/policy/*", "server/config*.cc"),
    "prometheus/": ("engine/metrics.cc", "engine/metrics_series.h"),
    "oneapi/dnnl/": ("quant/kernels/cpu/onednn_*",),
    "dnnl": ("quant/kernels/cpu/onednn_*",),
    "openssl/": ("base/sha256.cc", "server/front/connection.cc", "server/front/tls_store.cc"),
    "spdlog/": ("base/log.cc",),
    "pcre2.h": ("engine/model/tokenizer/*",),
    "unicode/": ("engine/model/tokenizer/*", "engine/model/checkpoint_text.cc"),
    "grpc": ("server/*", "cli/*"),
    "google/protobuf/": ("server/*", "cli/*"),
    "CLI/": ("cli/*", "server/*"),
    "immintrin.h": ("*avx*", "*vnni*", "*amx*", "*sse*", "*f16c*"),
}
# A third party that sits deep in one module is held to this many of its files.
MOST_FILES = {"yaml-cpp/": 5, "prometheus/": 2, "pcre2.h": 2, "unicode/": 6}


def module_of(path):
    """The module of a file (path relative to the root), or None."""
    parents = [str(parent) for parent in path.parents]
    return next((parent for parent in parents if parent in MAY_SEE), None)


def is_allowed(path, included):
    """Whether the file may include a path of ours."""
    module = module_of(path)
    return included.startswith((module + "/", *MAY_SEE[module]))


def violations(root):
    """Lines `file:line: may not include ...` for the tree under `root`."""
    found = []
    users = {party: set() for party in CONFINED}
    for top in OURS:
        for path in sorted((root / top).rglob("*")):
            relative = path.relative_to(root)
            if path.suffix not in SOURCES or module_of(relative) is None:
                continue
            for number, line in enumerate(path.read_text().splitlines(), 1):
                match = INCLUDE.match(line)
                if not match:
                    continue
                included = match[1]
                if included.split("/")[0] in OURS and not is_allowed(relative, included):
                    found.append(f"{relative}:{number}: may not include {included}")
                for party, files in CONFINED.items():
                    if included.startswith(party):
                        users[party].add(str(relative))
                        if not any(fnmatch.fnmatch(str(relative), pattern) for pattern in files):
                            found.append(f"{relative}:{number}: {included} belongs in {', '.join(files)} only")
    for party, most in MOST_FILES.items():
        if len(users[party]) > most:
            found.append(f"{party} is included by {len(users[party])} files, at most {most} may: {', '.join(sorted(users[party]))}")
    return found


def write(root, path, text):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_the_tree_obeys():
    assert violations(ROOT) == []


def test_there_is_a_tree():
    assert len(list((ROOT / "base").rglob("*.cc"))) >= 5


def test_catches_an_include_that_points_upwards(tmp_path):
    write(tmp_path, "quant/a.cc", '#include "base/tensor.h"\n#include "engine/model/model.h"\n')
    assert violations(tmp_path) == ["quant/a.cc:2: may not include engine/model/model.h"]


def test_catches_runtime_seeing_lifecycle(tmp_path):
    write(tmp_path, "engine/runtime/a.h", '#include "engine/metrics.h"\n  #  include "engine/lifecycle/registry.h"\n')
    assert violations(tmp_path) == ["engine/runtime/a.h:2: may not include engine/lifecycle/registry.h"]


def test_catches_protobuf_outside_of_server_and_cli(tmp_path):
    write(tmp_path, "engine/runtime/a.cc", "#include <google/protobuf/message.h>\n#include \"proto/assay/v1/x.pb.h\"\n")
    assert len(violations(tmp_path)) == 2


def test_catches_a_third_party_outside_of_its_file(tmp_path):
    write(tmp_path, "engine/metrics.cc", "#include <prometheus/counter.h>\n")
    write(tmp_path, "engine/metrics.h", "#include <prometheus/counter.h>\n")
    write(tmp_path, "quant/kernels/cpu/onednn_int8.cc", "#include <oneapi/dnnl/dnnl.hpp>\n")
    write(tmp_path, "quant/linear.cc", "#include <oneapi/dnnl/dnnl.hpp>\n")
    assert violations(tmp_path) == [
        "quant/linear.cc:1: oneapi/dnnl/dnnl.hpp belongs in quant/kernels/cpu/onednn_* only",
        "engine/metrics.h:1: prometheus/counter.h belongs in engine/metrics.cc, engine/metrics_series.h only",
    ]


def test_catches_a_third_party_that_spreads(tmp_path):
    for name in "abc":
        write(tmp_path, f"engine/model/tokenizer/{name}.cc", "#include <pcre2.h>\n")
    assert violations(tmp_path)[0].startswith("pcre2.h is included by 3 files, at most 2 may")


if __name__ == "__main__":
    lines = violations(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
    print("\n".join(lines) or "layering ok")
    sys.exit(bool(lines))
