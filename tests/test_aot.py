"""What is counted in compiled programs, and what is judged wrong."""

import importlib.util
import re
import struct

import jax
import jax.numpy as jnp
import pytest

from scripts.aot import document, figures, hlo, judge, library
from scripts.aot.machines import MACHINES
from scripts.aot.worker import Result, from_json

H100 = MACHINES["h100"]
# As XLA prints it, shortened.
TEXT = """
HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[8,16]{1,0})->f32[]}

%body (arg: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %arg = (s32[], f32[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %x = f32[8,16]{1,0} get-tuple-element(%arg), index=1
  %copied = f32[8,16]{0,1} copy(%x)
  ROOT %next = (s32[], f32[8,16]{1,0}) tuple(%i, %copied)
}

%condition (arg.1: (s32[], f32[8,16])) -> pred[] {
  %arg.1 = (s32[], f32[8,16]{1,0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

%fused_turn (p0: f32[4,8,16], p1: s32[]) -> bf16[16,8] {
  %p0 = f32[4,8,16]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %one = f32[1,8,16]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,8,16}
  %flat = f32[8,16]{1,0} bitcast(%one)
  %turned = f32[16,8]{1,0} transpose(%flat), dimensions={1,0}
  ROOT %small = bf16[16,8]{1,0} convert(%turned)
}

%fused_update (p: f32[4,8,16], u: f32[1,8,16], k: s32[]) -> f32[4,8,16] {
  %p = f32[4,8,16]{2,1,0} parameter(0)
  %u = f32[1,8,16]{2,1,0} parameter(1)
  %k = s32[] parameter(2)
  ROOT %put = f32[4,8,16]{2,1,0} dynamic-update-slice(%p, %u, %k, %k, %k)
}

%dynamic-slice-fusion (q: f32[4,8,16]) -> (f32[2,8,16], s32[2]) {
  %q = f32[4,8,16]{2,1,0} parameter(0)
  %part = f32[2,8,16]{2,1,0} slice(%q), slice={[0:2], [0:8], [0:16]}
  ROOT %sliced = (f32[2,8,16]{2,1,0}, s32[2]{0}) custom-call(%part), custom_call_target="dcn_jax.roi_pool.bwd", api_version=API_VERSION_TYPED_FFI
}

ENTRY %main (a: f32[8,16], b: bf16[16,32], c: f32[4,8,16], d: s32[], m: bf16[2,6,6,8], w: bf16[3,3,8,4]) -> f32[] {
  %a = f32[8,16]{1,0} parameter(0)
  %b = bf16[16,32]{1,0} parameter(1)
  %c = f32[4,8,16]{2,1,0} parameter(2)
  %d = s32[] parameter(3)
  %m = bf16[2,6,6,8]{3,2,1,0} parameter(4)
  %w = bf16[3,3,8,4]{3,2,1,0} parameter(5)
  %start = (s32[], f32[8,16]{1,0}) tuple(%d, %a)
  %loop = (s32[], /*index=1*/f32[8,16]{1,0}) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"},"known_init_step":{"init":"0","step":"1"}}
  %last = f32[8,16]{1,0} get-tuple-element(%loop), index=1
  %turn = bf16[16,8]{1,0} fusion(%c, %d), kind=kInput, calls=%fused_turn, metadata={op_name="jit(f)/transpose"}
  %gemm = (f32[8,32]{1,0}, s8[4194304]{0}) custom-call(%turn, %b), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["0"],"rhs_contracting_dimensions":["0"]}}}
  %conv = (bf16[2,6,6,4]{3,2,1,0}, u8[0]{0}) custom-call(%m, %w), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, custom_call_target="__cudnn$convForward"
  %y = bf16[2,6,6,4]{3,2,1,0} get-tuple-element(%conv), index=0
  %back = (bf16[3,3,8,4]{3,2,1,0}, u8[0]{0}) custom-call(%m, %y), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, custom_call_target="__cudnn$convBackwardFilter"
  %ours = f32[4,8,16]{2,1,0} custom-call(%c), custom_call_target="dcn_jax.roi_pool.fwd", api_version=API_VERSION_TYPED_FFI
  %around = (f32[2,8,16]{2,1,0}, s32[2]{0}) fusion(%c), kind=kCustom, calls=%dynamic-slice-fusion
  %sum.start = f32[8,16]{1,0} all-reduce-start(%last), replica_groups={}, to_apply=%condition
  %sum = f32[8,16]{1,0} all-reduce-done(%sum.start)
  %piece = f32[1,8,16]{2,1,0} bitcast(%sum)
  %update = f32[4,8,16]{2,1,0} fusion(%ours, %piece, %d), kind=kLoop, calls=%fused_update
  ROOT %total = f32[] reduce(%update, %d), dimensions={0,1,2}, to_apply=%condition
}
"""  # noqa: E501


@pytest.fixture(scope="module")
def program():
    return hlo.parse(TEXT)


def test_types_and_operands_are_read(program):
    gemm = program.entry.instructions["gemm"]
    assert gemm.results == (
        hlo.ArrayType("f32", (8, 32)),
        hlo.ArrayType("s8", (4194304,)),
    )
    assert gemm.operands == ("turn", "b")
    assert gemm.text("custom_call_target") == "__cublas$lt$matmul"
    assert [p.name for p in program.entry.parameters] == ["a", "b", "c", "d", "m", "w"]
    assert hlo.ArrayType("pred", (3,)).bytes == 3
    assert hlo.ArrayType("f8e4m3fn", (4, 2)).bytes == 8
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("HloModule empty")


def test_calls_collectives_and_moves_are_counted(program):
    found = figures.figures(program, 77, H100.rates)
    assert found.temporary == 77
    assert found.collectives == {"all-reduce": 1}
    assert found.calls == {
        "__cublas$lt$matmul": 1,
        "__cudnn$convBackwardFilter": 1,
        "__cudnn$convForward": 1,
        "dcn_jax.roi_pool.bwd": 1,
        "dcn_jax.roi_pool.fwd": 1,
    }
    # The loop copies five times; the turned slice ends in a conversion.
    assert found.moved == {
        "copy": 5 * 8 * 16 * 4,
        "transpose": 0,
        "convert": 16 * 8 * 2,
        "concatenate": 0,
    }


def test_bytes_are_those_that_are_touched(program):
    by_name = {kernel.name: kernel for kernel in figures.kernels(program)}
    # A slice of the operand, and the index.
    assert by_name["turn"].read == 8 * 16 * 4 + 4
    assert by_name["turn"].source == "jit(f)/transpose"
    # Without cuBLAS's workspace.
    assert by_name["gemm"].written == 8 * 32 * 4
    # In place: not the array that is updated.
    assert by_name["update"].written == 8 * 16 * 4
    assert by_name["update"].read == 8 * 16 * 4 + 4
    # Fused with a slice of what it reads.
    assert by_name["sliced"].read == 2 * 8 * 16 * 4
    assert "around" not in by_name
    assert "sum" not in by_name and "sum.start" not in by_name
    assert by_name["copied"].times == 5


def test_operations_are_those_of_products(program):
    by_name = {kernel.name: kernel for kernel in figures.kernels(program)}
    assert by_name["gemm"].operations == {"bf16": 2 * 8 * 32 * 16}
    convolution = 2 * (2 * 6 * 6 * 4) * (3 * 3 * 8)
    assert by_name["conv"].operations == {"bf16": convolution}
    assert by_name["back"].operations == {"bf16": convolution}
    found = figures.figures(program, 0, H100.rates)
    assert found.operations == 2 * 8 * 32 * 16 + 2 * convolution
    products = found.operations / H100.rates.half
    assert found.least_of_products == pytest.approx(products)
    assert found.least >= found.bytes / H100.rates.memory * (1 - 1e-9)


def test_a_program_of_this_jax_is_read():
    """Whatever XLA prints for the CPU: a loop, a fusion, a product."""

    def f(x):
        return jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ x) + 1, x)

    text = jax.jit(f).lower(jnp.ones((32, 32))).compile().as_text()
    found = figures.figures(hlo.parse(text), 0, H100.rates)
    assert found.operations == 3 * 2 * 32**3


def result(**changed):
    found = figures.figures(hlo.parse(TEXT), 5 << 20, H100.rates)
    return Result("title", found._replace(**changed), (), "", 1.0)


def test_results_pass_between_processes():
    assert from_json(result().to_json()) == result()
    bad = Result("title", None, (), "what XLA says", 0.5)
    assert from_json(bad.to_json()) == bad


def test_what_is_wrong_is_said():
    assert judge.problems(result(), H100, None) == []
    bad = Result("title", None, (), "NOT_FOUND: No FFI handler", 0.5)
    assert judge.problems(bad, H100, None) == [
        "does not compile: NOT_FOUND: No FFI handler"
    ]
    missing = result()._replace(missing=("dcn_jax.nms",))
    assert "no call of dcn_jax.nms" in judge.problems(missing, H100, None)[0]
    for name in ("all-gather", "all-to-all"):
        gathered = result(collectives={"all-reduce": 7, name: 2})
        assert judge.problems(gathered, H100, None) == [f"has 2 {name}"]
    large = result(temporary=81 << 30)
    assert "needs 81.0 GiB" in judge.problems(large, H100, None)[0]


def test_growth_is_judged_against_the_document(tmp_path, monkeypatch):
    path = tmp_path / "aot.md"
    path.write_text("# Title\n\n<!-- aot h100: begin -->\n<!-- aot h100: end -->\n")
    monkeypatch.setattr(document, "DOCUMENT", path)
    assert document.read("h100") == ("", {})
    document.write("h100", [result()], "jax 1, plugin 2")
    versions, recorded = document.read("h100")
    assert versions == "jax 1, plugin 2"
    assert "1 roi_pool.fwd" in path.read_text() and "2 cuDNN" in path.read_text()
    before = recorded["title"]
    assert judge.problems(result(), H100, before) == []
    # Less than a tenth, then more.
    assert judge.problems(result(temporary=6 << 20), H100, before) == []
    grown = judge.problems(result(temporary=7 << 20), H100, before)
    assert grown == ["temporary, MiB: 7; it was 5"]
    with pytest.raises(ValueError, match="has no <!-- aot a100: begin"):
        document.read("a100")


def test_some_lines_of_a_table_are_written_anew(tmp_path, monkeypatch):
    path = tmp_path / "aot.md"
    path.write_text("\n".join(document.markers("h100")) + "\n")
    monkeypatch.setattr(document, "DOCUMENT", path)
    names = ("first", "second")
    old = [result()._replace(title=name) for name in names]
    document.write("h100", old, "jax 1, plugin 2")
    before = document.read("h100")[1]
    figures = old[1].figures._replace(temporary=5 << 30)
    new = [old[1]._replace(figures=figures), result()._replace(title="third")]
    document.write("h100", new, "jax 1, plugin 2", whole=False)
    after = document.read("h100")[1]
    assert list(after) == ["first", "second", "third"]
    assert after["first"] == before["first"]
    assert after["second"]["temporary, MiB"] == 5 << 10
    with pytest.raises(ValueError, match="is by jax 1, plugin 2, this by jax 2"):
        document.write("h100", new, "jax 2, plugin 2", whole=False)


def test_the_document_has_a_table_for_each_machine():
    for key, machine in MACHINES.items():
        versions, recorded = document.read(key)
        assert re.match(r"jax [\d.]+, (jax-cuda13-pjrt|libtpu) [\d.]+$", versions)
        assert any(title.startswith("deform_conv2d;") for title in recorded)
        if machine.platform == "cuda":
            assert any(title.startswith("train step") for title in recorded)


def test_code_for_a_device_is_looked_for(tmp_path, monkeypatch):
    def entry(kind, capability, code):
        fields = (kind, 257, 64, len(code), 0, 0, 0, 0, capability)
        return struct.pack("<HHIQIIHHI", *fields).ljust(64, b"\0") + code

    inside = entry(2, 80, b"machine code") + entry(1, 90, b"ptx")
    container = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(inside)) + inside
    path = tmp_path / "_cuda.so"
    path.write_bytes(b"\x7fELF" + container + b"padding" + container)
    spec = importlib.util.spec_from_file_location("_cuda", path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert library.capabilities() == {(8, 0)}
    assert library.missing_code((8, 6)) == ""
    assert "has code for sm_80, none for sm_90" in library.missing_code((9, 0))
