"""The operators' benchmark runs, and counts right."""

import functools
import pickle
import re
import sys
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from scripts.benchmark import loader, ops, start
from scripts.benchmark.case import FMA_PEAK, Candidate, Case, Ratio, Table
from scripts.benchmark.conv_cases import conv_candidate, deform_arguments
from scripts.benchmark.fma import build_fma_peak, fma_flops
from scripts.benchmark.markdown import BEGIN, END, replace_section, timing_table
from scripts.benchmark.memory import Scratch
from scripts.benchmark.peak_rss import peak_growth
from scripts.benchmark.timing import Settings, value_and_gradients
from scripts.benchmark.torch_worker import TorchWorker
from train import inputs
from xla_ops import deform_conv2d


def tiny(channels):
    arguments = deform_arguments(1, channels, 6, 5)
    return {
        "kernel": Candidate(deform_conv2d, arguments),
        "lax.conv": conv_candidate(arguments[0], arguments[2]),
        "count": Candidate(jnp.count_nonzero, arguments[:1], differentiable=False),
    }


TINY = Table(
    "Tiny",
    "A sentence.",
    ("kernel", "count", "torchvision"),
    (
        Ratio("over", "kernel", "lax.conv"),
        Ratio("peak", FMA_PEAK, "kernel", percent=True),
        Ratio("peer", "torchvision", "kernel"),
    ),
    (
        Case("first", functools.partial(tiny, 4), flops=1e6),
        Case("second", functools.partial(tiny, 3), factor=0.5),
    ),
)


def cells(text):
    """Of a Markdown table, by row and column."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    columns = table[0][1:]
    return {row[0]: dict(zip(columns, row[1:], strict=True)) for row in table[2:]}


def test_a_table_is_measured_in_fresh_processes(tmp_path):
    settings = Settings(rounds=1, fma_peak=build_fma_peak(tmp_path))
    text = ops.timed_section(TINY, 1, settings)
    assert text.startswith("### Tiny\n\nA sentence.\n\n| milliseconds |")
    table = cells(text)
    assert list(table) == [
        f"{case}, {part}" for case in ("first", "second") for part in ("fwd", "fwd+bwd")
    ]
    for row, found in table.items():
        assert list(found) == ["kernel", "count", "over", "peak"]
        assert float(found["kernel"]) > 0
        assert re.fullmatch(r"\d+\.\d\d", found["over"])  # which may be 0.00
        assert bool(found["count"]) == row.endswith("fwd")
        assert bool(found["peak"]) == row.startswith("first")


def test_ratios_are_medians_of_the_ratios_of_processes():
    times = [(2.0, 1.0, 3.0), (900.0, 300.0, 90.0), (40.0, 10.0, 10.0)]
    found = [
        [
            {"kernel fwd": kernel, "lax.conv fwd": conv, f"{FMA_PEAK} fwd": peak},
            {"kernel fwd": kernel, "lax.conv fwd": conv, "kernel fwd+bwd": 1234.5},
        ]
        for kernel, conv, peak in times
    ]
    assert cells(timing_table(TINY, found)) == {
        "first, fwd": {"kernel": "40.0", "over": "3.00", "peak": "25%"},
        "second, fwd": {"kernel": "40.0", "over": "1.50", "peak": ""},
        "second, fwd+bwd": {"kernel": "1234", "over": "", "peak": ""},
    }


@pytest.mark.slow
def test_scratch_memory_is_that_of_a_fresh_process():
    text = ops.memory_section({"tiny": (2, 16, 8, 8)}, Settings(rounds=1))
    (found,) = cells(text).values()
    assert list(found) == ["XLA's plan", "peak RSS", "bound"]
    assert found["bound"] == f"{16 + 3 * 9 * 16 * 16 * 4 / 2**20:.1f}"
    assert 0 <= float(found["XLA's plan"]) < 1
    assert -1 < float(found["peak RSS"]) < 16


def test_torchs_memory_has_a_column_where_it_is_measured():
    scratch = Scratch(xla=2**20, resident=2**21, bound=2**22, torchvision=2**23)
    (found,) = cells(ops.memory_table({"row": scratch})).values()
    assert list(found.values()) == ["1.0", "2.0", "4.0", "8.0"]


def test_peak_growth_counts_what_was_freed_again():
    def run():
        np.ones(2**24)
        return np.ones(2**20)

    growth, result = peak_growth(run)
    assert 127 < growth / 2**20 < 160
    assert result.nbytes == 2**23


def test_all_gradients_are_asked_for():
    arguments = deform_arguments(1, 2, 4, 4)
    cotangent = jnp.ones((1, 4, 4, 2))
    y, *gradients = value_and_gradients(deform_conv2d)(cotangent, *arguments)
    assert y.shape == cotangent.shape
    assert [g.shape for g in gradients] == [a.shape for a in arguments]


def test_fma_peak_is_a_plausible_speed(tmp_path):
    program = build_fma_peak(tmp_path)
    assert program is not None
    assert 1e9 < fma_flops(program, 1) < 1e12


def test_an_interpreter_without_torch_is_reported():
    torch = TorchWorker(sys.executable, 1)
    with torch, pytest.raises(ConnectionError, match="torch's process died"):
        torch.versions()


def test_cases_can_be_sent_and_picked():
    names = [
        f"{table.title}: {case.title}" for table in ops.TABLES for case in table.cases
    ]
    assert len(set(names)) == len(names)
    pickle.dumps(ops.TABLES)


def test_the_loader_is_measured_on_both_data_sets(tmp_path):
    found = {}
    for title, config in loader.configurations(tmp_path, images=3).items():
        source = inputs.open_source(config, loader.TASK, config.data.train_split)
        assert source.num_boxes.sum() >= 3
        speed = loader.images_a_second(config, source, images=2)
        assert speed > 0
        found[title] = {0: speed, 1: 2 * speed, 2: 3 * speed}
    rows = cells(loader.table(found, 1))
    assert len(rows) == 2
    for row in rows.values():
        assert (row["1 / 0"], row["2 / 0"]) == ("2.00", "3.00")


def test_the_start_of_wheels_is_measured(tmp_path, monkeypatch):
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("marked.py", "open('imported', 'a').write('.')")
        archive.writestr("data", bytes(2_000_000))
    code = "import marked; assert len(open('imported').read()) <= 3"
    monkeypatch.setattr(start, "PROGRAMS", {"import": code})
    rows = {row[0]: row[1:] for row in start.measure([wheel], rounds=2)}
    assert rows.keys() >= {"import, s (clock)", "import, s (user)"}
    assert rows["wheel, MB"] == ["0.00"] and rows["unpacked, MB"] == ["2.00"]
    assert float(rows["import, s (clock)"][0]) > 0


def test_the_document_has_a_place_for_the_tables(tmp_path):
    document = ops.DOCUMENT.read_text()
    for marker in (BEGIN, END, loader.BEGIN, loader.END):
        assert document.count(marker) == 1
    copy = tmp_path / "copy.md"
    copy.write_text(document)
    replace_section(copy, "a \\1 b")
    before, rest = copy.read_text().split(BEGIN)
    middle, after = rest.split(END)
    assert middle == "\n\na \\1 b\n\n"
    assert document.startswith(before)
    assert document.endswith(after)
    copy.write_text("nothing")
    with pytest.raises(ValueError, match="0 pairs"):
        replace_section(copy, "text")
