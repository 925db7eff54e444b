"""What the stages are, and the environment that they run in.

Needs the standard library alone.
"""

import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any

from scripts.gpu_check.runner import ROOT, Stage

# Below 9 minutes, with what starts and ends the run.
SECONDS = 525
# A dry run compiles on any machine, and emulates: it may take so much longer.
DRY = 4
# XLA tries out no algorithms: programs compile faster, and the same products have the
# same bits in different programs.
_NO_AUTOTUNING = "--xla_gpu_autotune_level=0"
# cuBLAS and cuDNN alone: to try out Triton's products too takes longer than the check.
_NO_TRITON = "--xla_gpu_enable_triton_gemm=false"
# Without it a library that does not load would be measured as its plain jnp form.
_KERNELS = {"DCN_JAX_IMPLEMENTATION": "ffi"}


def stages(emulated: bool, only: str | None = None) -> list[Stage]:
    """All stages, in order; what matters most comes first.

    Those whose titles match the expression `only` have all time to themselves.
    """

    def stage(title, module, *arguments, least, most, environment=None, spare=False):
        command = [sys.executable, "-m", f"scripts.gpu_check.{module}", *arguments]
        environment = {"XLA_FLAGS": "", **(environment or {})}
        if emulated:
            command.append("--emulated")
        slower = DRY if emulated else 1
        most = SECONDS if only is not None else most
        return Stage(title, command, least, most * slower, environment, spare)

    same = {"XLA_FLAGS": f"{_NO_AUTOTUNING} {_NO_TRITON}"}
    tests: dict[str, Any] = dict(environment=same)
    check: dict[str, Any] = dict(environment={**same, **_KERNELS})
    speed: dict[str, Any] = dict(environment={"XLA_FLAGS": _NO_TRITON, **_KERNELS})
    found = [
        stage("Machine", "machine", least=2, most=90),
        stage("Build", "build", least=20, most=180),
        # From here on, what tells most of kernels that have not run.
        stage("Compilation", "compile", least=10, most=60, **check),
        stage("Every target", "calls", "check", least=10, most=60, **check),
        stage("Golden vectors", "tests", "golden", least=15, most=90, **tests),
        stage("Speed", "speed", least=60, most=130, **speed),
        stage("Parts of a layer", "parts", least=15, most=45, **speed),
        stage("Train step", "step", "check", least=20, most=80, **check),
        stage("Time of a train step", "step", "time", least=30, most=100, **speed),
        stage("Sanitizers", "sanitizer", least=30, most=100, **check),
        stage("Operator tests", "tests", "others", least=60, most=300, **tests),
        stage(
            "Generated layers",
            "tests",
            "generated",
            least=60,
            most=240,
            spare=True,
            **tests,
        ),
    ]
    return [s for s in found if only is None or re.search(only, s.title)]


def environment(emulated: bool, stand_ins: Path) -> dict[str, str]:
    """What all stages have in their environment."""
    added = {
        "JAX_PLATFORMS": "cpu" if emulated else "cuda,cpu",
        # Several processes share the GPU.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_CPP_MIN_LOG_LEVEL": "1",
    }
    if emulated:
        added["XLA_OPS_EMULATE_CUDA"] = "1"
    if importlib.util.find_spec("jaxtyping") is None:
        (stand_ins / "jaxtyping.py").write_bytes(
            Path(__file__).with_name("jaxtyping_stand_in.py").read_bytes()
        )
        path = [str(ROOT), str(stand_ins), os.environ.get("PYTHONPATH", "")]
        added["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    return added
