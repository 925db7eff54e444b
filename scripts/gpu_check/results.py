"""A pytest plugin that writes each test's outcome to a file as soon as it is known.

    GPU_CHECK_RESULTS=FILE python -m pytest -p scripts.gpu_check.results ...

A line is JSON: {"tests": how many there are} or {"test", "outcome", "seconds", "why"}.
What ran is there even if pytest is killed.
"""

import json
import os

import pytest

RESULTS = "GPU_CHECK_RESULTS"
# Characters of a message that are kept: some print whole arrays.
_LONGEST = 4000


def _write(line: dict) -> None:
    # The processes of pytest-xdist report to the one that started them.
    if "PYTEST_XDIST_WORKER" not in os.environ:
        with open(os.environ[RESULTS], "a") as file:
            file.write(json.dumps(line) + "\n")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node, ids) -> None:
    """The tests of a process of pytest-xdist: all of them."""
    del node
    _write({"tests": len(ids)})


def pytest_collection_finish(session) -> None:
    """The tests without pytest-xdist."""
    if session.items:
        _write({"tests": len(session.items)})


def pytest_collectreport(report) -> None:
    """Files that cannot be imported, or are skipped as a whole."""
    if report.outcome != "passed":
        _write(_line(report))


def pytest_runtest_logreport(report) -> None:
    """Setup, call and teardown of a test: the call, and what went wrong before it."""
    if report.when == "call" or report.outcome != "passed":
        _write(_line(report))


def _line(report) -> dict:
    why = ""
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        why = report.longrepr[2].removeprefix("Skipped: ")
    elif report.outcome == "failed":
        crash = getattr(report.longrepr, "reprcrash", None)
        why = crash.message if crash is not None else str(report.longrepr)
    return {
        "test": report.nodeid,
        "outcome": report.outcome,
        "seconds": getattr(report, "duration", 0.0),
        "why": why[:_LONGEST],
    }
