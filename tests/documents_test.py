"""The documents keep their form: decisions are short and numbered, links lead somewhere, files stay readable in size.

Plain program, too: documents_test.py [ROOT] prints what is wrong.
"""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
ADR_SECTIONS = ("Context", "Decision", "Consequences")  # a heading, or a paragraph that begins with the word in bold
MOST_ADR_LINES = 40
MOST_SOURCE_LINES = 500
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def tracked(root):
    """Files that git knows under `root`, or all files where there is no git."""
    listing = subprocess.run(["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                             capture_output=True, text=True)
    if listing.returncode == 0:
        return [root / name for name in listing.stdout.split("\0") if name and (root / name).is_file()]
    return [path for path in root.rglob("*") if path.is_file()]


def decision_problems(root):
    found = []
    numbers = []
    for path in sorted((root / "docs" / "adr").glob("*.md")):
        name, text = f"docs/adr/{path.name}", path.read_text()
        match = re.match(r"(\d{4})-[a-z0-9-]+\.md$", path.name)
        if not match:
            found.append(f"{name}: is not named NNNN-words.md")
            continue
        numbers.append(int(match[1]))
        if not text.startswith(f"# {int(match[1])}. "):
            found.append(f"{name}: does not begin with `# {int(match[1])}. `")
        if text.count("\n") > MOST_ADR_LINES:
            found.append(f"{name}: {text.count(chr(10))} lines, at most {MOST_ADR_LINES}")
        found += [f"{name}: has no section {section}" for section in ADR_SECTIONS
                  if not re.search(rf"^(## {section}$|\*\*{section}\.\*\* )", text, re.MULTILINE)]
    if numbers != list(range(1, len(numbers) + 1)):
        found.append(f"docs/adr: numbers are not 1, 2, 3, ...: {numbers}")
    return found


def link_problems(root):
    found = []
    for path in tracked(root):
        if path.suffix != ".md":
            continue
        for target in LINK.findall(CODE.sub("", path.read_text())):
            if re.match(r"[a-z]+:|#", target):
                continue
            if not (path.parent / target.split("#")[0]).exists():
                found.append(f"{path.relative_to(root)}: {target} does not exist")
    return found


def size_problems(root):
    found = []
    for path in tracked(root):
        if path.suffix in {".h", ".cc", ".cu", ".cuh", ".py"}:
            lines = path.read_text().count("\n")
            if lines > MOST_SOURCE_LINES:
                found.append(f"{path.relative_to(root)}: {lines} lines, at most {MOST_SOURCE_LINES}")
        if path.stat().st_size > 2 << 20:
            found.append(f"{path.relative_to(root)}: {path.stat().st_size} bytes, at most 2 MiB")
    return found


def problems(root):
    """All of them; scripts/check prints them, and the tests below fail on all but the length of sources."""
    return decision_problems(root) + link_problems(root) + size_problems(root)


def write(root, path, text):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def sound_decision(number):
    return f"# {number}. Title\n\n## Context\nx\n\n## Decision\ny\n\n## Consequences\nz\n"


def test_decisions_are_short_and_numbered():
    assert decision_problems(ROOT) == []
    assert (ROOT / "docs" / "adr" / "0001-inputs.md").is_file()


def test_links_lead_somewhere():
    assert link_problems(ROOT) == []


def test_files_are_small():
    assert [line for line in size_problems(ROOT) if line.endswith("MiB")] == []


def test_accepts_a_sound_tree(tmp_path):
    write(tmp_path, "docs/adr/0001-a.md", sound_decision(1))
    write(tmp_path, "docs/adr/0002-b.md", "# 2. Title\n\n**Context.** x\n\n**Decision.** y\n\n**Consequences.** z\n")
    write(tmp_path, "README.md", "[a](docs/adr/0001-a.md) [b](https://example.org) `[c](nowhere)`\n")
    assert problems(tmp_path) == []


def test_catches_a_long_decision_without_consequences(tmp_path):
    write(tmp_path, "docs/adr/0001-a.md", sound_decision(1).replace("## Consequences", "x\n" * 40))
    assert problems(tmp_path) == ["docs/adr/0001-a.md: 50 lines, at most 40",
                                  "docs/adr/0001-a.md: has no section Consequences"]


def test_catches_a_gap_in_the_numbers(tmp_path):
    write(tmp_path, "docs/adr/0001-a.md", sound_decision(1))
    write(tmp_path, "docs/adr/0003-c.md", sound_decision(3))
    assert problems(tmp_path) == ["docs/adr: numbers are not 1, 2, 3, ...: [1, 3]"]


def test_catches_a_dead_link_and_a_long_file(tmp_path):
    write(tmp_path, "README.md", "see [operations](docs/operations.md#ports)\n")
    write(tmp_path, "base/a.cc", "\n" * 501)
    assert problems(tmp_path) == ["README.md: docs/operations.md#ports does not exist", "base/a.cc: 501 lines, at most 500"]


if __name__ == "__main__":
    lines = problems(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
    print("\n".join(lines) or "documents ok")
    sys.exit(bool(lines))
