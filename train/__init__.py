"""Training runs: configs, data, the step, checkpoints and evaluation.

`evaluate` is the program, `evaluator` runs a network over a data set for it and for the
loop, and `evaluation` has the metrics.
"""
