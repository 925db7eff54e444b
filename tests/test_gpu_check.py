"""The GPU check keeps its time, and reports whatever happens."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmark.conv_cases import deform_arguments, deform_candidate
from scripts.benchmark.layers import COUNTS, SHAPES
from scripts.gpu_check import machine, roofline, speed, stages, tests
from scripts.gpu_check.__main__ import head
from scripts.gpu_check.calls import LAST
from scripts.gpu_check.machine import is_older
from scripts.gpu_check.results import RESULTS
from scripts.gpu_check.roofline import BFLOAT16, FLOAT32, TF32, Rates
from scripts.gpu_check.runner import (
    CUT_SHORT,
    SECONDS,
    SKIPPED,
    Stage,
    run_stage,
    run_stages,
    write_report,
)
from scripts.gpu_check.sanitizer import is_of_others, judge
from scripts.gpu_check.speed import Layers
from scripts.gpu_check.torchvision import Torchvision, torchvision

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
        found = stages.stages(emulated)
        assert len({s.title for s in found}) == len(found)
        for s in found:
            assert importlib.util.find_spec(s.command[2]) is not None
            assert ("--emulated" in s.command) == emulated
        # Even if all before them take their time, the last ones start.
        kept = sum(s.least for s in found if not s.spare)
        assert kept < stages.SECONDS < 540


def test_what_is_measured_are_the_kernels():
    """Not the plain jnp form, where the library does not load."""
    by_title = {stage.title: stage for stage in stages.stages(False)}
    for title in ("Train step", "Speed", "Time of a train step", "Sanitizers"):
        assert by_title[title].environment["DCN_JAX_IMPLEMENTATION"] == "ffi"


def test_chosen_stages_have_all_time():
    found = stages.stages(False, "Operator|Generated")
    assert [s.title for s in found] == ["Operator tests", "Generated layers"]
    assert {s.most for s in found} == {stages.SECONDS}
    assert stages.stages(False, "no such stage") == []
    assert "--only='Speed'" in head(False, "Speed", ["GPU"])


def test_nothing_is_kept_for_a_spare_stage():
    say = f"import os; print(os.environ['{SECONDS}'])"
    spare = stage(say, "spare", least=90)._replace(spare=True, most=100)
    first, last = run_stages([stage(say, most=1000), spare], 100, lambda _: None)
    assert float(first.text) > 95
    assert float(last.text) >= 90


def test_the_report_does_not_say_where_the_checkout_is():
    outcome = run(f"print('{ROOT}/xla_ops'); raise ValueError('{ROOT}/scripts')")
    assert outcome.text.startswith("xla_ops\n")
    assert "ValueError: scripts\n" in outcome.text
    assert str(ROOT) not in outcome.text


@pytest.mark.parametrize(
    ("version", "floor", "older"),
    [
        ("0.10.1", "0.10.2", True),
        ("0.9.9", "0.10.2", True),
        ("0.10.2.dev1", "0.10.2", False),
        ("0.11", "0.10.2", False),
        ("2.0.0", "2.0", False),
        ("1.26.4", "2.0", True),
    ],
)
def test_older_versions(version, floor, older):
    assert is_older(version, floor) == older


def test_old_packages_are_said(monkeypatch, capsys):
    monkeypatch.setattr(machine, "package_version", lambda name: "0.1")
    monkeypatch.setattr(machine, "tool_version", lambda name: None)
    assert machine.main() == 1
    said = capsys.readouterr().out
    for name in ("jax", "flax", "optax", "numpy", "pybind11", "jaxtyping"):
        floor = machine.floors()[name]
        assert f"{name} 0.1 is older than {floor}" in said


TESTS = """
import pytest
def test_good(): pass
def test_bad(): assert 1 == 2
def test_long(): raise ValueError("x" * 10**5)
def test_other(): pytest.skip("no reason")
@pytest.fixture
def broken(): raise ValueError("fixture")
def test_setup(broken): pass
"""


def test_results_are_written_test_by_test(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    results = tmp_path / "results"
    command = [sys.executable, "-m", "pytest", "-p", "scripts.gpu_check.results"]
    env = os.environ | {RESULTS: str(results), "PYTHONPATH": str(ROOT)}
    env.pop("PYTEST_XDIST_WORKER", None)  # it starts anew
    subprocess.run(
        [*command, "-q", "-p", "no:cacheprovider", "-c", os.devnull, str(tmp_path)],
        cwd=tmp_path,
        env=env,
        capture_output=True,
    )
    assert results.stat().st_size < 10**4
    lines = tests.read_results(results.read_text())
    text, failed, missing = tests.summary(lines)
    assert (failed, missing) == (3, 0)
    assert text.startswith("1 passed, 3 failed, 1 skipped.")
    assert "Skipped: 1 tests: no reason" in text
    assert "test_bad\n" in text
    assert "assert 1 == 2" in text
    assert "ValueError: fixture" in text


def test_results_that_were_cut_off_are_left_out():
    whole = {"test": "a", "outcome": "failed", "seconds": 1.0, "why": "no"}
    text = json.dumps(whole) + '\n{"test": "b", "outco'
    assert tests.read_results(text) == [whole]


def test_pytest_stopped_while_collecting(monkeypatch, capfd):
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(tests, "command", lambda *_: sleep)
    monkeypatch.setattr(sys, "argv", ["tests", "generated"])
    monkeypatch.setenv(SECONDS, "1")
    assert tests.main() == CUT_SHORT
    assert "Skipped: all, stopped while collecting." in capfd.readouterr().out


def test_tests_that_never_ran_are_counted():
    line = {"test": "a", "outcome": "passed", "seconds": 1.0, "why": ""}
    text, failed, missing = tests.summary([{"tests": 3}, line])
    assert (failed, missing) == (0, 2)
    assert "Skipped: 2 tests, for want of time." in text


def test_the_least_time_of_a_layer():
    rates = Rates(4.3e12, {"float32": 67e12, "TF32": 400e12, "bfloat16": 790e12})
    for precision, forward in ((FLOAT32, 1740e-6), (TF32, 291e-6), (BFLOAT16, 148e-6)):
        for backward in (False, True):
            least = sum(
                count * roofline.least_seconds(rates, 2, shape, precision, backward)
                for count, shape in zip(COUNTS, SHAPES, strict=True)
            )
            assert least == pytest.approx(forward * (1 + backward), rel=0.01)
    slow = rates._replace(copy=1e9)
    # x, y, offset, mask and kernel of conv3.
    expected = 2 * (2 * 15200 * 128 * 2 + 15200 * 27 * 4) + 9 * 128**2 * 2
    least = roofline.least_seconds(slow, 2, SHAPES[0], BFLOAT16, False)
    assert least == pytest.approx(expected / 1e9)


def test_bars():
    def layers(**seconds):
        return Layers([seconds] * 3)

    rates = Rates(1e15, dict.fromkeys(("TF32", "bfloat16", "float32"), 790e12))

    def cells(title, found):
        shares = {"measured rates": rates, "data sheet": rates._replace(copy=1e9)}
        plan = speed.Plan()
        lines = speed.bars(title, found, plan, shares).splitlines()
        return {line.split(" | ")[0]: line.split(" | ")[2:] for line in lines}

    tf32 = cells(
        "TF32",
        {
            "forward": layers(ours=1e-4, torchvision=3e-4),
            "backward": layers(ours=2e-4, atomic=1e-4, torchvision=3e-4),
        },
    )
    assert tf32["| TF32 forward: torchvision / ours"] == ["3.00", "met |"]
    assert tf32["| TF32 backward: torchvision / ours"] == ["1.50", "**not met** |"]
    limit = "| {} backward: sorted gradient of x / atomic, at most"
    assert tf32[limit.format("TF32")] == ["2.00", "**not met** |"]
    assert not any("share" in bar for bar in tf32)
    half = cells(
        "bfloat16",
        {"forward": layers(ours=2e-5), "backward": layers(ours=1, atomic=1)},
    )
    assert half["| bfloat16 forward: torchvision / ours"] == ["not measured", " |"]
    share = "| bfloat16 forward: share of the least time, by "
    assert half[share + "measured rates"] == ["57%", "met |"]
    # Its memory counts too.
    assert float(half[share + "data sheet"][0].rstrip("%")) > 1000
    assert half[limit.format("bfloat16")] == ["1.00", "met |"]
    assert cells("float32", {})[limit.format("float32")] == ["not measured", " |"]


def test_rows_of_a_layer():
    seconds = {"forward": {"ours": 2e-6}, "backward": {"ours": 4e-6, "atomic": 8e-6}}
    rows = {part: (found, 1e-6) for part, found in seconds.items()}
    assert speed.layer_table(rows).splitlines() == [
        "| microseconds | ours | atomic | least time | share of it |",
        "| --- | --- | --- | --- | --- |",
        "| forward | 2.0 |  | 1.0 | 50% |",
        "| backward | 4.0 | 8.0 | 1.0 | 25% |",
    ]


def test_each_shape_is_said_at_once(monkeypatch, capsys):
    """Time ends, or a shape fails, after the first one."""

    def measure(precision, shape, plan, peer):
        if len(said := capsys.readouterr().out) and "conv3 (x4), forward" in said:
            raise ValueError("too late")
        return {
            part: {"ours": 1e-4, "atomic": 1e-4} for part in ("forward", "backward")
        }

    monkeypatch.setattr(speed, "measure_shape", measure)
    rates = Rates(1e12, {"TF32": 1e12})
    given = TF32, speed.DRY, Torchvision(None), rates
    with pytest.raises(ValueError, match="too late"):
        speed.measure_layers(*given, time.monotonic())
    monkeypatch.setenv(SECONDS, "1")
    assert speed.measure_layers(*given, time.monotonic()) == {}
    assert "Skipped: TF32 from conv3 on" in capsys.readouterr().out


class BrokenWorker:
    """Fails at the call of that name; a call of a layer takes a second."""

    def __init__(self, broken):
        self.broken = broken
        self.timed = 0

    def versions(self):
        if self.broken == "versions":
            raise RuntimeError("no torch")
        return {"torch": "9"}

    def load(self, *_):
        if self.broken == "load":
            raise RuntimeError("no memory")

    def check(self, *_):
        raise AssertionError("\nNot equal to tolerance")

    def time(self, *_):
        self.timed += 1
        # After both parts were tried out and timed once.
        if self.broken == "time" and self.timed > 4:
            raise ConnectionError("torch's process died")
        return 1.0


@pytest.mark.parametrize("broken", ["load", "time", None])
def test_ours_goes_on_without_torchvision(broken, capsys):
    worker: Any = BrokenWorker(broken)
    peer = Torchvision(worker)
    shape = speed.DRY.shapes[0]
    candidate = deform_candidate(deform_arguments(1, *shape))
    turns = {"ours forward": lambda: 2.0, **peer.turns(candidate, {"theirs": "tf32"})}
    times = speed.take_turns(turns, rounds=2)
    theirs = {"theirs forward": 1.0, "theirs backward": 1.0} if broken is None else {}
    assert times == {"ours forward": 2.0, **theirs}
    assert peer.failed == (broken is not None)
    said = capsys.readouterr().out
    assert said.count("Failed: torchvision") == (broken is not None)


@pytest.mark.parametrize("broken", ["versions", "load", "values"])
def test_torchvision_is_left_out_where_it_does_not_agree(broken, capsys):
    worker: Any = BrokenWorker(broken)
    peer = Torchvision(worker)
    peer.check(speed.DRY.shapes[0])
    assert (peer.failed, peer.worker) == (True, None)
    reason = {
        "versions": "RuntimeError: no torch",
        "load": "RuntimeError: no memory",
        "values": "AssertionError: Not equal to tolerance",
    }[broken]
    assert reason in capsys.readouterr().out


@pytest.mark.parametrize("python", ["no-such-python", "false"])
def test_a_torch_that_does_not_start(python, capsys):
    with torchvision(python, "cpu") as peer:
        peer.check((16, 4, 4))
        assert peer.failed
        assert peer.worker is None
    assert "Failed: torchvision" in capsys.readouterr().out


def test_the_stand_in_for_jaxtyping(tmp_path):
    source = ROOT / "scripts" / "gpu_check" / "jaxtyping_stand_in.py"
    (tmp_path / "jaxtyping.py").write_bytes(source.read_bytes())
    program = "import dcn_jax.detection.two_stage, jaxtyping; print(jaxtyping.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(tmp_path / "jaxtyping.py")


def test_what_a_sanitizer_says():
    called = f"called roi_align\ncalled {LAST}\n"
    ours = "========= Race in xla_ops::(anonymous namespace)::columns_kernel\n"
    others = "========= Uninitialized read in loop_fusion\n"
    for status, output, state in [
        (0, called, "nothing found"),
        (0, "called roi_align\n", "failed"),
        (1, called, "failed"),
        (86, ours + called, "found something"),
        (None, "called roi_align\n", "stopped"),
        (86, "called roi_align\n========= Internal Sanitizer Error: x\n", "broke off"),
        (86, f"========= Internal Sanitizer Error: x\n\n{ours}", "found something"),
        (86, f"{others}========= Internal Sanitizer Error: x\n", "found something"),
    ]:
        found = judge(status, output)
        assert found.state == state
        assert found.calls == output.count("called")
    assert not is_of_others("initcheck", judge(86, ours + others + called))
    assert is_of_others("initcheck", judge(86, others + called))
    many = "".join(f"=========     Host Frame {i}\n" for i in range(50))
    found = judge(86, others + many + "========= \n" + ours + many + called)
    assert not is_of_others("initcheck", found)
    assert found.lines[0] == ours.strip()
    assert len(found.lines) == 40
    assert not is_of_others("initcheck", judge(1, called))
    stopped = judge(None, others + many + "=========\n" + ours)
    assert stopped.names_ours
    assert not is_of_others("racecheck", judge(86, others + called))
