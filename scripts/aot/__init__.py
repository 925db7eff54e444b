"""Compiles our programs for GPUs and TPUs that are not there, and reads the result.

`scripts/aot.sh` is the command. XLA resolves every custom call, plans memory and
inserts collectives for a device of which it has only a description; nothing runs.
docs/aot.md has what it found, and what it cannot see.

    machines    what is compiled for
    operators   programs of single operators
    programs    all programs of a machine: operators, train steps, detection
    worker      compiles them, in a process whose environment has the wheels
    hlo         reads the text of a compiled program
    figures     counts memory, calls, collectives, bytes and operations in it
    judge       says what is wrong
    document    the tables of docs/aot.md
    mutants     plants faults (planted): does compiling see them?
"""
