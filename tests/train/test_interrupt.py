"""What Ctrl-C does to a process, by small programs that know nothing of jax."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.support.launch import ROOT
from train import interrupt

SETTING = """
import hashlib, logging, signal, sys, time
from train import interrupt
# As in a terminal, wherever the tests run.
signal.signal(signal.SIGINT, signal.default_int_handler)
interrupt.end_at_once()
logging.basicConfig(level=logging.INFO, format="%(message)s")

def wait():
    for _ in range(6000):
        time.sleep(0.01)

def in_a_library():
    # As a compiler: Python's handlers wait until it returns.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

def ready():
    print("ready", flush=True)
"""
SAID = "Ctrl-C: ending as soon as it can; once more ends at once\n"


def start(program):
    process = subprocess.Popen(
        [sys.executable, "-c", SETTING + program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def finish(process):
    out, errors = process.communicate(timeout=30)
    return process.returncode, out, errors


def test_nothing_swallows_it_while_libraries_load():
    process = start("""
ready()
while True:
    try:
        wait()
    except BaseException:
        pass
""")
    process.send_signal(signal.SIGINT)
    assert finish(process) == (-signal.SIGINT, "", "")


def test_a_background_command_goes_on_ignoring_it():
    process = start("""
signal.signal(signal.SIGINT, signal.SIG_IGN)
interrupt.end_at_once()
with interrupt.Interrupts() as interrupts, interrupts.held():
    ready()
    time.sleep(0.5)
print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)
""")
    process.send_signal(signal.SIGINT)
    assert finish(process) == (0, "True\n", "")


def test_a_program_cleans_up():
    process = start("""
@interrupt.interruptible
def main():
    try:
        ready()
        wait()
    finally:
        print("cleaned")
        sys.excepthook = lambda *error: None
main()
""")
    process.send_signal(signal.SIGINT)
    status, out, errors = finish(process)
    assert (status, out) == (-signal.SIGINT, "cleaned\n")
    assert errors == SAID


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_is_asked_to_end(number):
    process = start("""
sys.excepthook = lambda kind, *error: print(kind.__name__)
with interrupt.Interrupts() as interrupts:
    with interrupts.held():
        ready()
        while not interrupts.received:
            time.sleep(0.01)
        print("saved after", interrupts.received.name, flush=True)
    print("not interrupted")
""")
    process.send_signal(number)
    status, out, errors = finish(process)
    if number == signal.SIGTERM:
        assert (status, out) == (0, "saved after SIGTERM\nnot interrupted\n")
        assert not errors
    else:
        assert (status, out) == (
            -signal.SIGINT,
            "saved after SIGINT\nKeyboardInterrupt\n",
        )
        assert errors == SAID


def test_one_that_a_library_swallowed_is_raised_before_the_steps():
    process = start("""
sys.excepthook = lambda kind, *error: print(kind.__name__)
with interrupt.Interrupts() as interrupts:
    try:
        ready()
        wait()
    except BaseException:
        print("swallowed")
    with interrupts.held():
        print("not reached")
""")
    process.send_signal(signal.SIGINT)
    status, out, _ = finish(process)
    assert (status, out) == (-signal.SIGINT, "swallowed\nKeyboardInterrupt\n")


@pytest.mark.parametrize("where", ["wait()", "in_a_library()"])
def test_twice_ends_at_once(where):
    process = start(f"""
with interrupt.Interrupts() as interrupts, interrupts.held():
    ready()
    while True:
        {where}
""")
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    # The answer comes while the library is still at work.
    assert process.stderr.readline() == SAID
    time.sleep(0.1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    status, _, errors = finish(process)
    assert status in (-signal.SIGINT, 128 + signal.SIGINT) and not errors


def test_a_thread_that_nobody_ends_is_not_waited_for():
    """As of a pool that a KeyboardInterrupt kept from entering it in its list."""
    process = start("""
import threading
from train import cli

def main(arguments, task):
    with interrupt.Interrupts():
        threading.Thread(target=threading.Event().wait).start()
        ready()
        wait()

sys.argv = ["program", "--config=train/configs/digits.py"]
cli.run(main)
""")
    process.send_signal(signal.SIGINT)
    status, _, errors = finish(process)
    assert status == -signal.SIGINT
    assert errors.endswith(SAID)


def test_what_was_there_before_is_put_back():
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    threads = threading.active_count()
    with interrupt.Interrupts() as interrupts, interrupts.held():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert threading.active_count() == threads
