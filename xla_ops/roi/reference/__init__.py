"""RoI pooling in plain jnp, written to be read.

It is the oracle of the tests, the path for platforms that have no kernel, and what
second derivatives run.
"""
