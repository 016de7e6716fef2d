"""What scripts/gpu_check bundles, and how the bench counts. The command itself: scripts/gpu_check --dry-run."""

import json
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests" / "bench" / "cuda")]

import gpu_bundle  # noqa: E402
import gpu_server  # noqa: E402
import harness  # noqa: E402


def carried(directory):
    """A bundle with one library, compressed, and one link."""
    (directory / "usr" / "lib").mkdir(parents=True)
    library = directory / "usr" / "lib" / "liba.so.1"
    library.write_bytes(bytes(100_000))
    gpu_bundle.compress(library)
    (directory / "links.json").write_text(json.dumps({"usr/lib/liba.so": "liba.so.1"}))
    return library


def test_a_bundle_that_lost_its_links_is_restored(tmp_path):
    library = carried(tmp_path)
    assert not library.exists()
    gpu_bundle.restore(tmp_path)
    assert (tmp_path / "usr" / "lib" / "liba.so").read_bytes() == bytes(100_000)
    gpu_bundle.restore(tmp_path)  # again: nothing to do


def test_the_size_of_a_bundle_is_what_travels(tmp_path):
    carried(tmp_path)
    before = gpu_bundle.size(tmp_path)
    gpu_bundle.restore(tmp_path)
    assert gpu_bundle.size(tmp_path) == before < 1000
    gpu_bundle.drop_restored(tmp_path)
    assert [path.name for path in (tmp_path / "usr" / "lib").iterdir()] == ["liba.so.1.xz"]


@pytest.mark.parametrize("path, is_bundled", [
    ("/usr/include/absl/status/status.h", True), ("/usr/include/pcre2.h", True), ("/usr/include/x86_64-linux-gnu/openssl/conf.h", True),
    ("/usr/include/c++/12/vector", False), ("/usr/include/yaml-cpp/yaml.h", False)])
def test_headers_of_the_packages_are_bundled(path, is_bundled):
    assert bool(gpu_bundle.HEADERS.fullmatch(path)) == is_bundled


@pytest.mark.parametrize("path, is_bundled", [
    ("/usr/lib/x86_64-linux-gnu/libabsl_base.so", True), ("/usr/lib/x86_64-linux-gnu/libicudata.so", True),
    ("/usr/lib/x86_64-linux-gnu/libicuio.so", False), ("/usr/lib/x86_64-linux-gnu/libgrpc++.so", False)])
def test_libraries_of_the_packages_are_bundled(path, is_bundled):
    assert bool(gpu_bundle.LIBRARIES.search(path)) == is_bundled


def test_notices_what_a_build_took_from_the_machine():
    text = "a.o:\n    /usr/include/absl/base/config.h\n    /x/gpu-carry/usr/include/absl/base/log.h\n    /usr/include/stdio.h\n" \
           "  LINK = -Wl,-rpath,/x/usr/lib  /x/gpu-carry/usr/lib/libfmt.so  /usr/lib/x86_64-linux-gnu/libspdlog.so -ldl\n"
    assert gpu_bundle.foreign_in(text) == ["/usr/include/absl/base/config.h", "/usr/lib/x86_64-linux-gnu/libspdlog.so"]


@pytest.mark.parametrize("soname, travels", [("libgrpc++.so.1.51", True), ("libcrypto.so.3", True), ("libstdc++.so.6", True),
                                             ("libc.so.6", False), ("libm.so.6", False), ("linux-vdso.so.1", False)])
def test_a_server_brings_its_libraries_but_for_the_c_library(soname, travels):
    assert (gpu_server.OF_THE_C_LIBRARY.match(soname) is None) == travels


def test_libraries_are_those_that_the_linker_would_load():
    assert not [name for name in gpu_server.libraries_of(sys.executable) if name.startswith(("libc.", "ld-linux"))]


def test_a_server_that_was_not_built_is_named(tmp_path):
    with pytest.raises(gpu_server.ServerError, match="not built: .*assay-server"):
        gpu_server.collect(tmp_path / "to", tmp_path, tmp_path / "model")


def test_operands_outgrow_the_cache_three_times():
    assert harness.rotations(100 << 20, 50 << 20) == 2
    assert harness.rotations(1 << 30, 50 << 20) == 1
    assert harness.rotations(1, 50 << 20) == 64


def test_a_row_is_the_ratio_to_its_peer_and_its_share_of_the_roof():
    table = harness.Table()
    table.roofs["bytes"] = 1e12
    table.add("G1", "product", 1e-3, "torch", 3e-3, share=table.share("bytes", 5e8, 1e-3), goal="2x")
    table.missing("G2", "other", "no peer here")
    assert table.rows[0]["value"] == pytest.approx(3)
    assert table.rows[0]["share_of_roof"] == pytest.approx(0.5)
    assert table.share("fp8", 1, 1) is None  # a roof that was not measured
    product, other = table.text().splitlines()[2:]
    assert "1000.0" in product and "50%" in product and "torch" in product
    assert "not measured: no peer here" in other


def test_the_emulated_timer_calls_everything_once():
    called = []
    times = harness.EmulatedTimer().measure([lambda stream: called.append("a")] * 2, [lambda stream: called.append("b")])
    assert called == ["a", "a", "b"] and len(times) == 2
