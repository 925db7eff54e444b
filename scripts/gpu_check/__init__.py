"""Builds, tests and measures the CUDA kernels on a machine with a GPU, without network.

`scripts/gpu_check.sh` is the command, docs/cuda.md says what it checks. `__main__` runs
the list in `stages`, by `runner`: each stage is a process, and what it prints is its
part of the report.

    machine            what is here: GPUs, programs, versions of packages
    build              the kernel libraries
    compile            programs of detectors, by XLA
    calls              every target once, beside the plain form
    tests, results     the operators' tests; a pytest plugin that keeps each outcome
    speed, parts       layers beside torchvision; kernels and products of a layer
    torchvision        the peer of `speed`, as long as it works
    roofline           least times of a layer, from measured rates
    step               a train step, beside the CPU's, and its time
    sanitizer          compute-sanitizer over `calls`

`jaxtyping_stand_in` takes the place of a package that may not be installed.
"""
