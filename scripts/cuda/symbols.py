"""Names of CUDA kernels in object files."""

import re
import subprocess
from typing import NamedTuple


class KernelName(NamedTuple):
    """An instance of a kernel template, `columns_kernel<float, 4>`."""

    source: str  # `deform_conv/columns`; two files may have kernels of one name.
    family: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        """As in C++."""
        return f"{self.family}<{', '.join(self.arguments)}>"


def kernel_names(symbols: set[str], source: str) -> dict[str, KernelName]:
    """The names of mangled symbols of one source file."""
    ordered = sorted(symbols)
    done = subprocess.run(
        ["c++filt"],
        input="\n".join(ordered),
        capture_output=True,
        text=True,
        check=True,
    )
    names = {}
    for symbol, name in zip(ordered, done.stdout.splitlines(), strict=True):
        name = name.replace("(anonymous namespace)::", "").split("(")[0]
        name = re.sub(r"\w+::", "", name).removeprefix("void ")
        family, _, arguments = name.rstrip(">").partition("<")
        parts = tuple(part.strip() for part in arguments.split(",") if part)
        names[symbol] = KernelName(source, family, parts)
    return names
