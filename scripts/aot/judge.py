"""What is wrong with a compiled program."""

from collections.abc import Mapping

from scripts.aot.machines import Machine
from scripts.aot.worker import Result

# A batch that is split over devices needs neither.
_FORBIDDEN = ("all-gather", "all-to-all")
_GROWTH = 1.1


def cells(result: Result) -> dict[str, float]:
    """The figures of a program by the headings of the tables."""
    figures = result.figures
    assert figures is not None, result.title
    moved = {f"{name}, MB": size / 1e6 for name, size in figures.moved.items()}
    return {
        "temporary, MiB": figures.temporary / 2**20,
        **moved,
        "read and written, GB": figures.bytes / 1e9,
        "products, TFLOP": figures.operations / 1e12,
        "least time, ms": figures.least * 1e3,
        "products' share of it, %": figures.roofline * 100,
    }


# Headings of figures that must not grow, and by how much they may, beside a tenth: less
# says nothing.
MUST_NOT_GROW = {
    "temporary, MiB": 1.0,
    "copy, MB": 1.0,
    "transpose, MB": 1.0,
    "convert, MB": 1.0,
    "concatenate, MB": 1.0,
    "read and written, GB": 0.01,
    "products, TFLOP": 0.001,
    "least time, ms": 0.01,
}


def problems(
    result: Result, machine: Machine, recorded: Mapping[str, float] | None
) -> list[str]:
    """Sentences; none where all is well.

    Args:
      result: What became of the program.
      machine: That it was compiled for.
      recorded: Figures by the headings of `cells` that must not grow, or None.
    """
    if result.figures is None:
        return [f"does not compile: {result.error}"]
    found = [
        f"has no call of {name}: the plain form crept in" for name in result.missing
    ]
    found += [
        f"has {count} {name}"
        for name, count in result.figures.collectives.items()
        if name in _FORBIDDEN
    ]
    if result.figures.temporary > machine.memory:
        found.append(
            f"needs {result.figures.temporary / 2**30:.1f} GiB beside its arguments; "
            f"the device has {machine.memory / 2**30:.0f}"
        )
    if recorded is not None:
        now = cells(result)
        found += [
            f"{heading}: {now[heading]:.4g}; it was {recorded[heading]:.4g}"
            for heading, slack in MUST_NOT_GROW.items()
            if now[heading] > _GROWTH * recorded[heading] + slack
        ]
    return found
