"""Do our checks find bugs in the kernels? Bugs to plant, and who must find them.

`scripts/mutants.sh` is the command. `table` says what each bug is and which checks
must find it; its patch is `patches/<library>/<name>.patch`. `checks` plants a patch in
a copy of the tree and runs a check on it; `__main__` runs all and prints verdicts.
"""
