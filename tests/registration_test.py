"""Nothing lies in the tree unbuilt: every source and every *_test.cc stands in a CMakeLists.txt, every test file has tests.

Plain program, too: registration_test.py [ROOT] prints what is wrong.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILT = ("base", "quant", "engine", "server", "cli", "loadtest", "tests")
TEST_MACRO = re.compile(r"^\s*(TEST|TEST_F|TEST_P|TYPED_TEST|TYPED_TEST_P)\(", re.MULTILINE)
PYTHON_TEST = re.compile(r"^(\s*def test_|class Test)", re.MULTILINE)


def listed(root):
    """Every word of every CMakeLists.txt that names a file, as a path relative to `root`."""
    files = set()
    for lists in [root / "CMakeLists.txt", *(path for top in BUILT for path in (root / top).rglob("CMakeLists.txt"))]:
        if lists.is_file():
            text = re.sub(r"#.*", "", lists.read_text())
            text = text.replace("${CMAKE_CURRENT_SOURCE_DIR}/", "")
            for word in re.findall(r"[^\s()\"]+\.(?:cc|cu|py)", text):
                if word.startswith("${PROJECT_SOURCE_DIR}/"):
                    files.add((root / word.removeprefix("${PROJECT_SOURCE_DIR}/")).resolve())
                else:
                    files.add((lists.parent / word).resolve())
    return files


def problems(root):
    """One line for each file that is not built, is no test although its name says so, or for a tree without tests."""
    root = root.resolve()
    found = []
    known = listed(root)
    num_tests = 0
    for top in BUILT:
        for path in sorted((root / top).rglob("*")):
            relative = path.relative_to(root)
            is_cc_test = path.name.endswith("_test.cc")
            is_python_test = top == "tests" and path.name.endswith("_test.py")
            if path.suffix not in {".cc", ".cu"} and not is_python_test:
                continue
            if path not in known:
                found.append(f"{relative}: in no CMakeLists.txt")
            if is_cc_test or is_python_test:
                num_tests += 1
                if not (TEST_MACRO if is_cc_test else PYTHON_TEST).search(path.read_text()):
                    found.append(f"{relative}: has no test")
            if is_cc_test and top != "tests":
                found.append(f"{relative}: tests belong under tests/")
    if num_tests == 0:
        found.append("tests/: no test at all")
    return found


def write(root, path, text):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def sound_tree(root):
    write(root, "base/CMakeLists.txt", "assay_library(base SRCS a.cc cpu/b.cc)\n")
    write(root, "base/a.cc", "")
    write(root, "base/cpu/b.cc", "")
    write(root, "tests/base/CMakeLists.txt", "assay_test(base_test SRCS a_test.cc)\n")
    write(root, "tests/base/a_test.cc", "TEST(A, Works) {}\n")
    return root


def test_everything_is_registered():
    assert problems(ROOT) == []


def test_accepts_a_sound_tree(tmp_path):
    assert problems(sound_tree(tmp_path)) == []


def test_catches_a_test_that_is_not_built(tmp_path):
    write(sound_tree(tmp_path), "tests/base/b_test.cc", "TEST(B, IsForgotten) {}\n")
    assert problems(tmp_path) == ["tests/base/b_test.cc: in no CMakeLists.txt"]


def test_catches_a_source_that_is_commented_out(tmp_path):
    write(sound_tree(tmp_path), "base/CMakeLists.txt", "assay_library(base SRCS a.cc  # cpu/b.cc\n)\n")
    assert problems(tmp_path) == ["base/cpu/b.cc: in no CMakeLists.txt"]


def test_catches_a_python_test_that_is_not_run(tmp_path):
    write(sound_tree(tmp_path), "tests/e2e/c_test.py", "def test_c():\n    pass\n")
    assert problems(tmp_path) == ["tests/e2e/c_test.py: in no CMakeLists.txt"]


def test_catches_a_file_without_tests(tmp_path):
    write(sound_tree(tmp_path), "tests/base/a_test.cc", "// TEST(A, Works) {}\n")
    assert problems(tmp_path) == ["tests/base/a_test.cc: has no test"]


def test_catches_a_tree_without_tests(tmp_path):
    (sound_tree(tmp_path) / "tests/base/a_test.cc").unlink()
    assert problems(tmp_path) == ["tests/: no test at all"]


if __name__ == "__main__":
    lines = problems(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
    print("\n".join(lines) or "registration ok")
    sys.exit(bool(lines))
