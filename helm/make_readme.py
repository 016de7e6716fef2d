#!/usr/bin/env python3
"""Writes the table of values in helm/assay/README.md from the `# --` comments of values.yaml. --check: compare, do not write.

A comment documents the key in the line after it. A key with a comment is a row, with all that is below it as its default; keys
without one are headings of what is below them.
"""

import json
import pathlib
import re
import sys

import yaml

CHART = pathlib.Path(__file__).resolve().parent / "assay"
BEGIN, END = "<!-- values: written by make_readme.py -->", "<!-- end of values -->"
KEY = re.compile(r"^( *)([A-Za-z]\w*):")
COMMENT = re.compile(r"^ *# -- (.*)$")


def documented(text):
    """[(path, comment)] in the order of the file."""
    rows, above, comment = [], [], None
    for line in text.splitlines():
        said, key = COMMENT.match(line), KEY.match(line)
        if said:
            comment = said[1]
        elif key:
            depth = len(key[1]) // 2
            above = [*above[:depth], key[2]]
            if comment:
                rows.append((".".join(above), comment))
            comment = None
        else:
            comment = None
    return rows


def value_at(values, path):
    for key in path.split("."):
        values = values[key]
    return values


def leaves(values, path=""):
    """Paths of what is no map; an empty map is a leaf, too."""
    if isinstance(values, dict) and values:
        return [leaf for key, value in values.items() for leaf in leaves(value, f"{path}.{key}" if path else key)]
    return [path]


def undocumented(text):
    rows = [path for path, _ in documented(text)]
    return [leaf for leaf in leaves(yaml.safe_load(text)) if not any(f"{leaf}.".startswith(f"{row}.") for row in rows)]


def table(text):
    values = yaml.safe_load(text)
    lines = ["| value | default | what |", "|---|---|---|"]
    for path, comment in documented(text):
        default = json.dumps(value_at(values, path)).replace("|", "\\|")
        lines.append(f"| `{path}` | `{default}` | {comment.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def renewed(readme, text):
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(text)}\n{END}{after}"


def main():
    readme, text = CHART / "README.md", (CHART / "values.yaml").read_text()
    if missing := undocumented(text):
        sys.exit(f"values.yaml: no comment above {', '.join(missing)}")
    fresh = renewed(readme.read_text(), text)
    if sys.argv[1:] == ["--check"]:
        if fresh != readme.read_text():
            sys.exit("helm/assay/README.md is not what make_readme.py writes; run it")
    else:
        readme.write_text(fresh)


if __name__ == "__main__":
    main()
