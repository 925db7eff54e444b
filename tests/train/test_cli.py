"""What the programs print of a mistake."""

import json
import subprocess
import sys

from tests.support.launch import ROOT, environment
from train import flag_help
from train.configs import _base, digits


def test_an_error_is_one_short_printable_line(tmp_path):
    name = "\x1b[31m" * 1000 + "\n"
    run = subprocess.run(
        [sys.executable, "-m", "train.main", f"--config={tmp_path}/{name}.py"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.isprintable()
    assert len(line) < 2000


def test_help_shows_the_flags_and_every_field():
    text = subprocess.run(
        [sys.executable, "-m", "train.main", "--help"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    ).stdout
    assert max(map(len, text.splitlines())) <= 100
    for flag in ("config", "workdir", "coordinator", "traceback"):
        assert f"\n  --{flag}" in text
    for field in flag_help.fields():
        assert f"\n  {field.path} = {field.default}\n" in text


def test_every_field_is_explained():
    shown = {field.path: field for field in flag_help.fields()}
    sections = _base.get_config().to_dict()
    paths = {
        f"{name}.{inner}" if inner else name
        for name, value in sections.items()
        for inner in (value if isinstance(value, dict) else [""])
    }
    assert shown.keys() == paths
    assert all(field.meaning for field in shown.values())


PRINT = """
from train import cli
def main(arguments, task):
    config = cli.config()
    print(config.name, config.steps, config.data.canvases, cli.workdir(), arguments)
cli.run(main)
"""


def printed(*arguments):
    run = subprocess.run(
        [sys.executable, "-c", PRINT, *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    return run.stdout.strip() or run.stderr.strip()


def test_a_run_knows_its_configuration(tmp_path):
    config = digits.get_config()
    config.steps = 7
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    shown = f"digits {{}} ((256, 256),) {tmp_path} ['a.jpg']"
    folder = f"--workdir={tmp_path}"
    assert printed(folder, "a.jpg") == shown.format(7)
    # Another configuration is the one that is asked for.
    path = f"--config={tmp_path}/config.json"
    assert printed(path, folder, "--config.steps=8", "a.jpg") == shown.format(8)
    (tmp_path / "config.json").write_text("{")
    assert "config.json is damaged" in printed("--workdir", tmp_path)
    (tmp_path / "config.json").unlink()
    assert "--config" in printed(folder)
