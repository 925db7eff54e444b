"""Reads what nvcc makes of the CUDA kernels, for the tables of docs/cuda.md.

compile    the command, `python -m scripts.cuda.compile`: all architectures of a
release; registers, shared memory and spills of each kernel
sass       instructions in the machine code that must be there
symbols    names of kernels in object files
"""
