"""The GPU check keeps its time, and reports whatever happens."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts import gpu_check, gpu_check_roofline, gpu_check_speed, gpu_check_tests
from scripts.benchmark_conv_cases import SHAPES
from scripts.gpu_check_results import RESULTS
from scripts.gpu_check_roofline import BFLOAT16, FLOAT32, TF32, Rates
from scripts.gpu_check_runner import (
    CUT_SHORT,
    SECONDS,
    SKIPPED,
    Stage,
    run_stage,
    run_stages,
    write_report,
)
from scripts.gpu_check_sanitizer import is_of_others, judge
from scripts.gpu_check_speed import Layers

ROOT = Path(__file__).resolve().parent.parent


def stage(program, title="stage", least=0, most=20, **environment):
    return Stage(title, [sys.executable, "-c", program], least, most, environment)


def run(program, limit=20):
    return run_stage(stage(program), limit)


@pytest.mark.parametrize(
    ("program", "state", "is_bad"),
    [
        ("print('fine')", "passed", False),
        (f"print('fine'); exit({SKIPPED})", "skipped", False),
        (f"print('fine'); exit({CUT_SHORT})", "cut short", False),
        ("print('fine'); raise ValueError('broken')", "failed", True),
        ("print('fine'); import os; os.abort()", "failed", True),
    ],
)
def test_how_a_stage_ends(program, state, is_bad):
    outcome = run(program)
    assert (outcome.state, outcome.is_bad) == (state, is_bad)
    assert outcome.text.startswith("fine")
    assert ("ValueError: broken" in outcome.text) == ("broken" in program)


def test_a_program_that_is_not_there():
    outcome = run_stage(Stage("stage", ["no-such-program"], 0, 1), 1)
    assert outcome.state == "failed"
    assert "no-such-program" in outcome.text


def test_a_stage_that_hangs_is_killed_with_what_it_started():
    program = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""
    begin = time.monotonic()
    outcome = run(program, limit=2)
    assert time.monotonic() - begin < 20
    assert outcome.state == "killed"
    assert outcome.is_bad
    pid = int(outcome.text.split()[0])
    assert "Skipped: the rest." in outcome.text
    for _ in range(100):
        # Nobody may have waited for it yet.
        status = Path(f"/proc/{pid}/status")
        if not status.exists() or "State:\tZ" in status.read_text():
            return
        time.sleep(0.05)
    pytest.fail("the child lives")


def test_stages_share_the_time():
    """A stage leaves the later ones what they need at least."""
    reports = []
    say = f"import os; print(os.environ['{SECONDS}'])"
    outcomes = run_stages(
        [
            stage(say, "short", most=5),
            stage(say, "long", most=1000, least=1),
            stage(say, "late", most=1000, least=20),
            stage("raise SystemExit(7)", "bad"),
            stage(say, "last", least=101),
        ],
        200,
        lambda outcomes: reports.append([o.state for o in outcomes]),
    )
    assert reports[0] == ["running"]
    assert reports[-1] == ["passed"] * 3 + ["failed", "passed"]
    short, long, late = (float(o.text.split()[0]) for o in outcomes[:3])
    assert short == 5
    assert 70 < long <= 200 - 20 - 101
    assert 90 < late <= 200 - 101


def test_a_stage_without_time_does_not_start():
    outcomes = run_stages([stage("", least=2), stage("print(1)")], 1, lambda _: None)
    assert [o.state for o in outcomes] == ["not started", "passed"]
    assert "Skipped: 1 s were left, and it takes 2." in outcomes[0].text


def test_the_report_is_there_at_every_moment(tmp_path):
    path = tmp_path / "reports" / "report.md"
    seen = []

    def report(outcomes):
        write_report(path, "# Head", outcomes)
        seen.append(path.read_text())

    run_stages(
        [
            stage("print('one\\n\\nSkipped: half of it, for want of time.')", "first"),
            stage("print('two'); raise KeyError('lost')", "second"),
        ],
        60,
        report,
    )
    assert len(seen) == 4
    assert "| first | running | 0 |" in seen[0]
    assert "| second | running | 0 |" in seen[2]
    assert "## first\n\none\n" in seen[2]
    last = seen[-1]
    assert last.startswith("# Head\n")
    assert "| first | passed |" in last
    assert "| second | failed |" in last
    assert "- first: half of it, for want of time.\n" in last
    assert "KeyError: 'lost'" in last
    assert [p.name for p in path.parent.iterdir()] == ["report.md"]


def test_every_stage_is_there():
    for emulated in (True, False):
        found = gpu_check.stages(emulated)
        assert len({s.title for s in found}) == len(found)
        for s in found:
            assert importlib.util.find_spec(s.command[2]) is not None
            assert ("--emulated" in s.command) == emulated
        # Even if all before them take their time, the last ones start.
        assert sum(s.least for s in found) < gpu_check.SECONDS < 540


TESTS = """
import pytest
def test_good(): pass
def test_bad(): assert 1 == 2
def test_other(): pytest.skip("no reason")
@pytest.fixture
def broken(): raise ValueError("fixture")
def test_setup(broken): pass
"""


def test_results_are_written_test_by_test(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    results = tmp_path / "results"
    command = [sys.executable, "-m", "pytest", "-p", "scripts.gpu_check_results"]
    env = os.environ | {RESULTS: str(results), "PYTHONPATH": str(ROOT)}
    env.pop("PYTEST_XDIST_WORKER", None)  # it starts anew
    subprocess.run(
        [*command, "-q", "-p", "no:cacheprovider", "-c", os.devnull, str(tmp_path)],
        cwd=tmp_path,
        env=env,
        capture_output=True,
    )
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    text, failed, missing = gpu_check_tests.summary(lines)
    assert (failed, missing) == (2, 0)
    assert text.startswith("1 passed, 2 failed, 1 skipped.")
    assert "Skipped: 1 tests: no reason" in text
    assert "test_bad\n" in text
    assert "assert 1 == 2" in text
    assert "ValueError: fixture" in text


def test_tests_that_never_ran_are_counted():
    line = {"test": "a", "outcome": "passed", "seconds": 1.0, "why": ""}
    text, failed, missing = gpu_check_tests.summary([{"tests": 3}, line])
    assert (failed, missing) == (0, 2)
    assert "Skipped: 2 tests, for want of time." in text


def test_the_least_time_of_a_layer():
    rates = Rates(4.3e12, {"float32": 67e12, "TF32": 400e12, "bfloat16": 790e12})
    for precision, forward in ((FLOAT32, 1740e-6), (TF32, 291e-6), (BFLOAT16, 148e-6)):
        for backward in (False, True):
            least = sum(
                count
                * gpu_check_roofline.least_seconds(rates, 2, shape, precision, backward)
                for count, shape in zip((4, 6, 3), SHAPES, strict=True)
            )
            assert least == pytest.approx(forward * (1 + backward), rel=0.01)
    slow = rates._replace(copy=1e9)
    # x, y, offset, mask and kernel of conv3.
    expected = 2 * (2 * 15200 * 128 * 2 + 15200 * 27 * 4) + 9 * 128**2 * 2
    least = gpu_check_roofline.least_seconds(slow, 2, SHAPES[0], BFLOAT16, False)
    assert least == pytest.approx(expected / 1e9)


def test_bars():
    def layers(**seconds):
        return Layers([seconds] * 3)

    found = {
        "TF32": {
            "forward": layers(ours=1e-4, torchvision=3e-4),
            "backward": layers(ours=2e-4, atomic=1e-4, torchvision=3e-4),
        },
        "bfloat16": {
            "forward": layers(ours=2e-5),
            "backward": layers(ours=1, atomic=1),
        },
    }
    rates = Rates(1e15, dict.fromkeys(("TF32", "bfloat16", "float32"), 790e12))
    plan = gpu_check_speed.Plan()
    lines = gpu_check_speed.bars(found, plan, rates).splitlines()
    cells = {line.split(" | ")[0]: line.split(" | ")[2:] for line in lines}
    assert cells["| TF32 forward: torchvision / ours"] == ["3.00", "met |"]
    assert cells["| TF32 backward: torchvision / ours"] == ["1.50", "**not met** |"]
    assert cells["| bfloat16 forward: torchvision / ours"] == ["not measured", " |"]
    share = cells["| bfloat16 forward: share of the least time, by measured rates"]
    assert share == ["57%", "met |"]
    limit = "| {} backward: sorted gradient of x / atomic, at most"
    assert cells[limit.format("TF32")] == ["2.00", "**not met** |"]
    assert cells[limit.format("bfloat16")] == ["1.00", "met |"]
    assert cells[limit.format("float32")] == ["not measured", " |"]


def test_the_stand_in_for_jaxtyping(tmp_path):
    source = ROOT / "scripts" / "gpu_check_jaxtyping.py"
    (tmp_path / "jaxtyping.py").write_bytes(source.read_bytes())
    program = "import dcn_jax.rcnn, jaxtyping; print(jaxtyping.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(tmp_path / "jaxtyping.py")


def test_what_a_sanitizer_says():
    called = "called roi_align\ncalled nms\n"
    ours = "========= Race in xla_ops::(anonymous namespace)::columns_kernel\n"
    others = "========= Uninitialized read in loop_fusion\n"
    for status, output, state in [
        (0, called, "nothing found"),
        (0, "called roi_align\n", "failed"),
        (1, called, "failed"),
        (86, ours + called, "found something"),
        (None, "called roi_align\n", "stopped"),
    ]:
        found = judge(status, output)
        assert found.state == state
        assert found.calls == output.count("called")
    assert not is_of_others("initcheck", judge(86, ours + others + called))
    assert is_of_others("initcheck", judge(86, others + called))
    assert not is_of_others("racecheck", judge(86, others + called))
