"""`scripts.benchmark.profile` of a small program."""

import jax
import jax.numpy as jnp

from scripts.benchmark import profile


def test_operations_are_counted_by_primitive_and_pass(tmp_path):
    def energy(x, kernel):
        def layer(x, _):
            return jnp.sin(x @ kernel), None

        return jax.lax.scan(layer, x, None, length=3)[0].sum()

    x = jnp.ones((64, 64))
    program = jax.jit(jax.grad(energy, (0, 1))).lower(x, x).compile()
    found = profile.kinds(program.as_text())
    product = {profile.Kind("dot_general", backward) for backward in (False, True)}
    assert product <= set(found.values())
    with jax.profiler.trace(str(tmp_path)):
        for _ in range(2):
            jax.block_until_ready(program(x, x))
    measured = list(profile.durations(tmp_path))
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in profile.table(found, iter(measured), steps=2)[2:]
    ]
    counts = {(name, direction): count for name, direction, count, *_ in rows}
    # Inside a loop each time counts, the loop itself does not.
    assert counts["dot_general", "forward"] == "3"
    assert int(counts["dot_general", "backward"]) >= 3
    assert not any("while" in name for name, _ in counts)
    assert rows[-1][0] == "all" and rows[-1][-1] == "100.0%"


def test_what_is_short_shares_a_row():
    kinds = {name: profile.Kind(name, False) for name in "abc"}
    measured = [("a", 6.0), ("b", 1.0), ("c", 1.0), ("c", 2.0), ("unknown", 9.0)]
    lines = profile.table(kinds, iter(measured), steps=1, rows=1)
    assert lines[2:] == [
        "| a | forward | 1 | 6 | 60.0% |",
        "| others |  | 3 | 4 | 40.0% |",
        "| all |  | 4 | 10 | 100.0% |",
    ]


def test_a_fusion_has_the_name_of_what_it_holds():
    program = """\
%fused (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %dot.1 = f32[4]{0} dot(%p, %p), metadata={op_name="transpose(jvp())/dot_general"}
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %p.1 = f32[4]{0} parameter(0)
  %while.1 = f32[4]{0} while(%p.1), metadata={op_name="jit(f)/while"}
  %copy.1 = f32[4]{0} copy(%p.1)
  ROOT %fusion.1 = f32[4]{0} fusion(%copy.1), kind=kLoop, calls=%fused
}
"""
    found = profile.kinds(program)
    assert found["fusion.1"] == profile.Kind("dot_general", backward=True)
    assert found["copy.1"] == profile.Kind("copy", backward=False)
    assert "while.1" not in found
