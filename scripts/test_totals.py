"""Sums the results of test runs. usage: test_totals.py [--failed N] RESULTS_DIRECTORY...

Each directory is what scripts/test leaves: ctest.junit with one entry per CTest test, and NAME.xml with the cases of the
test NAME, written by GoogleTest or pytest. A test that left no cases (it crashed, timed out, or is a plain program) counts
as one. --failed adds N failures that no test stands for. Prints `N passed, N failed, N skipped`; exits with 1 when something failed or nothing passed.
"""

import argparse
import pathlib
import sys
import xml.etree.ElementTree as ElementTree


def outcome(case):
    """"passed", "failed" or "skipped" for one <testcase> of CTest, GoogleTest or pytest."""
    if case.find("failure") is not None or case.find("error") is not None or case.get("status") == "fail":
        return "failed"
    if case.find("skipped") is not None or case.get("status") in ("notrun", "disabled"):
        return "skipped"
    return "passed"


def cases_of(path):
    """The outcomes in one XML file; None when there is none or it is not whole. No case at all is a failure."""
    try:
        return [outcome(case) for case in ElementTree.parse(path).iter("testcase")] or ["failed"]
    except (OSError, ElementTree.ParseError):
        return None


def sum_up(directory):
    """Outcomes of all cases of one run."""
    outcomes = []
    for entry in ElementTree.parse(directory / "ctest.junit").iter("testcase"):
        cases = cases_of(directory / f"{entry.get('name')}.xml")
        whole = outcome(entry)
        if cases is None:
            cases = [whole]
        elif whole == "failed" and "failed" not in cases:
            cases.append("failed")  # all cases passed, yet the program did not
        outcomes += cases
    return outcomes


def totals(directories, num_failed):
    """(passed, failed, skipped) over the runs. A run that left no results is a failure."""
    outcomes = ["failed"] * num_failed
    for directory in directories:
        try:
            outcomes += sum_up(pathlib.Path(directory))
        except (OSError, ElementTree.ParseError) as error:
            print(f"test_totals: {directory}: {error}", file=sys.stderr)
            outcomes.append("failed")
    return tuple(outcomes.count(kind) for kind in ("passed", "failed", "skipped"))


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--failed", type=int, default=0)
    parser.add_argument("directories", nargs="+")
    arguments = parser.parse_args()
    passed, failed, skipped = totals(arguments.directories, arguments.failed)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    sys.exit(1 if failed or not passed else 0)


if __name__ == "__main__":
    main()
