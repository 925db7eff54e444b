"""Times operators against plain jnp, XLA's convolution, torchvision and torch.

    python -m scripts.benchmark.ops [--torch-python=.venv-torch/bin/python] [--write]

Within a process the candidates take turns call by call, so that a busy moment of the
machine falls on all of them. A ratio is taken within a process, and the tables show
medians over processes. Peers are checked to compute the same before they are timed.
docs/benchmarks.md holds the result, says what the columns are, and how torchvision gets
an interpreter of its own; without one its columns are left out.
"""

import argparse
import concurrent.futures
import datetime
import multiprocessing
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from scripts.benchmark.box_cases import BOX_TABLE
from scripts.benchmark.case import Table
from scripts.benchmark.conv_cases import (
    BFLOAT16_TABLE,
    CONV_TABLE,
    FORM_TABLE,
    GROUP_TABLE,
    ODD_TABLE,
)
from scripts.benchmark.fma import build_fma_peak, fma_flops
from scripts.benchmark.layers import SHAPES
from scripts.benchmark.markdown import memory_table, replace_section, timing_table
from scripts.benchmark.memory import measure_scratch
from scripts.benchmark.timing import (
    Settings,
    library_versions,
    measure,
    open_torch,
    processor,
    thread_count,
)

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
TABLES = (CONV_TABLE, GROUP_TABLE, BFLOAT16_TABLE, ODD_TABLE, BOX_TABLE, FORM_TABLE)
MEMORY_CASES = {
    f"{channels}ch {height}x{width}, {images} images": (images, channels, height, width)
    for channels, height, width in SHAPES
    for images in (1, 8)
}


def in_fresh_process(function: Callable, *arguments: Any) -> Any:
    """Calls a function that can be pickled in a new interpreter."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def timed_section(table: Table, processes: int, settings: Settings) -> str:
    """The Markdown of a table, measured in so many processes."""
    found = [
        in_fresh_process(measure, table.cases, settings)
        for _ in tqdm(range(processes), desc=table.title, unit="process")
    ]
    return timing_table(table, found)


def memory_section(cases: dict[str, tuple], settings: Settings) -> str:
    """The Markdown of the scratch memory of cases, each in a process."""
    found = {
        title: in_fresh_process(measure_scratch, *shape, settings.torch_python)
        for title, shape in tqdm(cases.items(), desc="memory", unit="process")
    }
    return memory_table(found)


def conditions(processes: int, settings: Settings) -> str:
    """What the figures were measured with."""
    with open_torch(settings.torch_python) as torch:
        versions = library_versions(torch)
    peak = "not measured: no C++ compiler"
    if settings.fma_peak is not None:
        # Of a few, since only the machine's best moment is its peak.
        flops = max(fma_flops(settings.fma_peak, thread_count()) for _ in range(5))
        peak = f"{flops / 1e9:.0f} GFLOP/s"
    return (
        f"{processor()}, {thread_count()} threads; float32 FMA peak {peak}.\n"
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}.\n"
        f"Medians of {processes} processes with {settings.rounds} rounds each, "
        f"{datetime.date.today().isoformat()}."
    )


def main() -> None:
    """Measures, and prints or writes the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--torch-python", help="interpreter that has torch and torchvision"
    )
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="regular expression: rows 'TABLE: ROW' it finds")
    parser.add_argument(
        "--write", action="store_true", help=f"into docs/{DOCUMENT.name}"
    )
    options = parser.parse_args()
    if options.write and options.only:
        parser.error("--write needs all tables; it cannot go with --only")
    chosen = re.compile(options.only or "")

    with tempfile.TemporaryDirectory() as folder:
        fma_peak = build_fma_peak(Path(folder))
        settings = Settings(options.rounds, options.torch_python, fma_peak)
        sections = [conditions(options.processes, settings)]
        for table in TABLES:
            cases = [
                c for c in table.cases if chosen.search(f"{table.title}: {c.title}")
            ]
            if cases:
                table = table._replace(cases=tuple(cases))
                sections.append(timed_section(table, options.processes, settings))
        memory = {
            title: shape
            for title, shape in MEMORY_CASES.items()
            if chosen.search(f"memory: {title}")
        }
        if memory:
            sections.append(memory_section(memory, settings))
    text = "\n\n".join(sections)
    if options.write:
        replace_section(DOCUMENT, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
