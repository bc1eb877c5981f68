"""The static gates: what they let pass and what they do not; no kernel is compiled here."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("triton")

import torch

from bench.static import cases, gates
from bench.static.machine_code import innermost, instructions
from bench.static.operands import DTYPES
from fused_elbo.kernels.triton.launch import recording
from fused_elbo.kernels.triton.marginals_log_prob import (
    marginals_log_prob,
    marginals_log_prob_backward,
)

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "results" / "static" / "sm_90.json"
ROW = {
    "kernel": "rsample_kl forward",
    "dtype": "float32",
    "columns": 64,
    "stack": 0,
    "local": 0,
    "instructions_per_element": 50.0,
    "bytes_per_element": 12.0,
    "contract_bytes": 12,
    "global_accesses": {},
}
GATES = {"rsample_kl forward | float32 | 64": 55.0}


def test_a_row_within_its_gates_passes():
    assert gates.check([ROW], GATES) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stack": 32}, "stack 32"),
        ({"local": 4}, "local 4"),
        ({"bytes_per_element": 3.0}, "3.0 bytes per element"),
        ({"bytes_per_element": 20.0}, "the contract is 12"),
        ({"instructions_per_element": 55.1}, "the gate is 55.0"),
        ({"kernel": "new kernel"}, "no gate"),
    ],
)
def test_each_fault_is_named(change, message):
    (problem,) = gates.check([ROW | change], GATES)
    assert message in problem


def test_a_ceiling_holds_whatever_the_gate_says():
    row = ROW | {"instructions_per_element": 71.0}
    (problem,) = gates.check([row], {"rsample_kl forward | float32 | 64": 100.0})
    assert "the gate is 70" in problem


def test_a_ceiling_holds_for_a_kernel_without_a_contract():
    row = ROW | {"kernel": "mixture_log_prob forward", "contract_bytes": None}
    assert gates.check([row | {"instructions_per_element": 4.2}], {}) == []
    (problem,) = gates.check([row | {"instructions_per_element": 4.3}], {})
    assert "4.3 instructions per element, the gate is 4.2" in problem


def test_a_second_exponential_is_named():
    row = ROW | {"kernel": "marginals_log_prob forward", "contract_bytes": None}
    row |= {"instructions_per_element": 8.0, "exponentials_per_element": 1.02}
    assert gates.check([row], {}) == []
    (problem,) = gates.check([row | {"exponentials_per_element": 2.0}], {})
    assert "2.0 exponentials per element" in problem


def test_weights_are_no_code_of_their_own():
    """They are in an operand that is there without: so no row of the report is theirs."""
    z, weights, needs = torch.zeros(4, 3), torch.zeros(4), [True] * 3
    grad, kept = torch.zeros(4), torch.zeros(3, 4)

    def launches(given):
        with recording() as found:
            marginals_log_prob(z, z, z, given)
            marginals_log_prob_backward(grad, z, z, z, given, kept, [*needs, False])
        for kernel, _, arguments, constexprs in found:
            seen = [getattr(argument, "dtype", argument) for argument in arguments]
            yield kernel, seen, constexprs

    assert list(launches(weights)) == list(launches(None))


def test_every_kernel_is_compiled():
    """The kernels that launches of all families reach, and those that the source defines."""
    sources = (ROOT / "kernels" / "triton").glob("*.py")
    defined = {name for p in sources for name in re.findall(r"def (\w+_kernel)\(", p.read_text())}
    found = cases.cases(torch.float32, 64)
    assert {cases.record(case.call)[0].__name__ for case in found} == defined


@pytest.mark.parametrize("dtype", DTYPES)
def test_cases_are_those_of_the_committed_report(dtype):
    rows = json.loads(COMMITTED.read_text())["kernels"]
    names = [case.name for case in cases.cases(DTYPES[dtype], 64)]
    assert len(set(names)) == len(names)
    assert names == [r["kernel"] for r in rows if (r["dtype"], r["columns"]) == (dtype, 64)]


def test_committed_report_is_within_the_committed_gates():
    rows = json.loads(COMMITTED.read_text())["kernels"]
    assert len(rows) == len(gates.load()) + sum(row["contract_bytes"] is None for row in rows)
    assert gates.check(rows, gates.load()) == []


def test_instructions_are_counted_up_to_the_last_exit():
    sass = """
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/              @!P0 EXIT ;
        /*0020*/               @P1 LDG.E.128 R4, [R2] ;
        /*0030*/              @UP0 UIADD3 UR4, UR4, 0x1, URZ ;
        /*0040*/                   NOP ;
        /*0050*/                   EXIT ;
        /*0060*/                   BRA 0x60 ;
    """
    opcodes, loop = instructions(sass)
    assert opcodes == ["S2R", "EXIT", "LDG.E.128", "UIADD3", "EXIT"]
    assert loop == []


def test_the_longest_loop_is_found():
    """From its label to the branch back; a jump forwards and the branch to itself are none."""
    sass = """
        /*0000*/                   MOV R1, R2 ;
        /*0010*/               @P0 BRA `(.L_x_2) ;
    .L_x_0:
        /*0020*/                   FADD R0, R0, R1 ;
        /*0030*/               @P1 BRA `(.L_x_0) ;
    .L_x_1:
        /*0040*/                   LDG.E.128 R4, [R2] ;
        /*0050*/                   NOP ;
        /*0060*/                   FFMA R0, R4, R5, R0 ;
        /*0070*/               @P1 BRA `(.L_x_1) ;
    .L_x_2:
        /*0080*/                   EXIT ;
    .L_x_3:
        /*0090*/                   BRA `(.L_x_3);
    """
    assert instructions(sass)[1] == ["LDG.E.128", "FFMA", "BRA"]


def test_innermost_loops_are_found():
    """Two in one: what is around them does not count."""
    sass = """
    .L_x_0:
        /*0010*/                   MOV R1, R2 ;
    .L_x_1:
        /*0020*/                   FADD R0, R0, R1 ;
        /*0030*/               @P1 BRA `(.L_x_1) ;
        /*0040*/                   MUFU.EX2 R3, R3 ;
    .L_x_2:
        /*0050*/                   FMUL R0, R0, R1 ;
        /*0060*/               @P1 BRA `(.L_x_2) ;
        /*0070*/               @P2 BRA `(.L_x_0) ;
        /*0080*/                   EXIT ;
    .L_x_3:
        /*0090*/                   BRA `(.L_x_3);
    """
    assert innermost(sass) == ["FADD", "BRA", "FMUL", "BRA"]
