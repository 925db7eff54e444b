"""Loads the kernel libraries and registers their handlers with XLA."""

import importlib
import os
import re
import sys
from pathlib import Path
from typing import Any

import jax

_BUILD_COMMAND = "scripts/build.sh"
# jax's name of a platform -> the name under which jaxlib keeps its targets. jaxlib
# passes names on that it does not know: those of "cuda" would wait for ever, as the
# plugin of CUDA asks for "CUDA".
_XLA_PLATFORMS = {"cpu": "cpu", "cuda": "CUDA"}
_IMPLEMENTATIONS = ("ffi", "reference")


def framework_ffi_version() -> tuple[int, int]:
    """XLA FFI API version (major, minor) of the installed jaxlib."""
    header = Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    text = header.read_text()
    major, minor = (
        re.search(rf"#define XLA_FFI_API_{part} (\d+)", text)
        for part in ("MAJOR", "MINOR")
    )
    if major is None or minor is None:
        raise ImportError(f"{header} does not state the version of the XLA FFI API")
    return int(major[1]), int(minor[1])


def load_library(module: str, platform: str) -> dict[str, Any]:
    """Registers the handlers of `xla_ops.<module>` and returns them by target name.

    Raises:
      ImportError: The library is not built, cannot be loaded, or was built against a
        newer XLA FFI than the installed jaxlib has. Registering such a library would
        leave the process without any jax backend.
    """
    library = importlib.import_module(f"xla_ops.{module}")
    built, installed = library.ffi_api_version, framework_ffi_version()
    if built[0] != installed[0] or built > installed:
        raise ImportError(
            f"it was built for XLA FFI {built[0]}.{built[1]}, but jaxlib has "
            f"{installed[0]}.{installed[1]}"
        )
    handlers = library.registrations()
    for name, capsule in handlers.items():
        jax.ffi.register_ffi_target(name, capsule, platform=_XLA_PLATFORMS[platform])
        jax.ffi.register_ffi_target_as_batch_partitionable(name)
    return handlers


def library_modules() -> dict[str, str]:
    """Platform -> module with its handlers.

    XLA_OPS_EMULATE_CUDA=1 is for tests: the CPU then runs the CUDA kernels, compiled
    for it (`csrc/simt/simt_host.h`).
    """
    if os.environ.get("XLA_OPS_EMULATE_CUDA") == "1":
        return {"cpu": "_cuda_emulated"}
    return {"cpu": "_cpu", "cuda": "_cuda"}


def where_it_is(module: str) -> str:
    """Says where an installation has `xla_ops.<module>` that this package hides.

    Python looks into the folder that it is started in first: in a checkout, it finds
    the sources there in the place of the installed package.
    """
    here = Path(__file__).resolve().parent.parent
    for entry in sys.path:
        package = Path(entry).resolve() / "xla_ops"
        whole = (package / "__init__.py").exists() and any(package.glob(f"{module}.*"))
        if whole and package != here:
            return (
                f"; the sources in {here.parent} hide the package that is installed in "
                f"{package.parent}: start Python in another folder, or install by "
                "`pip install -e .`"
            )
    return ""


# By platform: the handlers by target name, or why there are none.
targets: dict[str, dict[str, Any]] = {}
load_errors: dict[str, str] = {}
for _platform, _module in library_modules().items():
    try:
        targets[_platform] = load_library(_module, _platform)
    except ImportError as error:
        load_errors[_platform] = f"{error}{where_it_is(_module)}"


def backends() -> tuple[str, ...]:
    """Platforms whose kernels are built and loaded, such as `("cpu",)`.

    Every other platform runs the operators' plain jnp form (see `implementation` of
    the operators).
    """
    return tuple(targets)


def custom_call_targets() -> tuple[str, ...]:
    """Names of the custom calls that a program with these operators may make.

    Those of all libraries that are loaded, sorted. `jax.export` wants them named:

        checks = [
            jax.export.DisabledSafetyCheck.custom_call(target)
            for target in custom_call_targets()
        ]
        jax.export.export(jax.jit(function), disabled_checks=checks)

    Whoever runs the exported program imports `xla_ops` first.
    """
    return tuple(sorted({name for library in targets.values() for name in library}))


def has_cuda_kernels(platform: str) -> bool:
    """Whether a platform runs the CUDA kernels: CUDA, or their emulation."""
    return library_modules()[platform] in ("_cuda", "_cuda_emulated")


def check_target(target: str, platform: str) -> None:
    """Checks that a platform's kernel can be called.

    Raises:
      RuntimeError: Its library is not loaded, or lacks the target.
    """
    if target not in targets.get(platform, ()):
        reason = load_errors.get(platform, f"the library has no {target}")
        raise RuntimeError(
            f"the {platform} kernels are not available: {reason}. Build them with "
            f'`{_BUILD_COMMAND}`, or pass implementation="reference"'
        )


def resolve_implementation(implementation: str | None) -> str | None:
    """Checks `implementation`; `None` takes DCN_JAX_IMPLEMENTATION's value, if set.

    Returns:
      "reference", "ffi" (a platform without kernels is an error) or None (kernels
      where the platform has them, else the reference).

    Raises:
      ValueError: The value is none of these.
    """
    source = "`implementation`"
    if implementation is None:
        source = "environment variable DCN_JAX_IMPLEMENTATION"
        implementation = os.environ.get("DCN_JAX_IMPLEMENTATION") or None
    known = isinstance(implementation, str) and implementation in _IMPLEMENTATIONS
    if implementation is not None and not known:
        raise ValueError(
            f"{source} is {implementation!r}; "
            f"expected None or one of {_IMPLEMENTATIONS}"
        )
    return implementation
