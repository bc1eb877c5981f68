"""The emulator of PTX itself: one planted fault of each kind, and arithmetic against torch's."""

import pytest
import torch
import triton
import triton.language as tl

from helpers.machine import PTX
from helpers.ptx import launch, program
from helpers.ptx.faults import Fault

# In other passes Triton has the interpreter, or no device to compile for.
needs_ptx = pytest.mark.skipif(not PTX, reason="needs TRITON_PTX=1")

HEAD = """.version 8.7
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry k(
	.param .u64 .ptr .global .align 1 k_param_0
)
.reqntid 64
{
	.reg .pred %p<4>;
	.reg .b32 %r<9>;
	.reg .b64 %rd<9>;
	ld.param.b64 %rd1, [k_param_0];
	mov.u32 %r1, %tid.x;
	shl.b32 %r2, %r1, 2;
	mul.wide.u32 %rd2, %r1, 4;
	add.s64 %rd3, %rd1, %rd2;
"""
# Each thread hands its number to the one 32 further, through shared memory.
HANDED_ON = """	mov.b32 %r3, global_smem;
	add.s32 %r4, %r3, %r2;
	st.shared.b32 [%r4], %r1;
	BARRIER
	xor.b32 %r5, %r2, 128;
	add.s32 %r5, %r5, %r3;
	ld.shared.b32 %r6, [%r5];
	st.global.b32 [%rd3], %r6;
	ret;
}"""
# Each thread goes through a loop as often as its number says, and meets the others again.
APART = """	mov.b32 %r3, 0;
	mov.b32 %r4, 0;
$L1:
	setp.ge.u32 %p1, %r3, %r1;
	@%p1 bra $L2;
	add.s32 %r3, %r3, 1;
	add.s32 %r4, %r4, %r3;
	bra.uni $L1;
$L2:
	bar.sync 0;
	st.global.b32 [%rd3], %r4;
	ret;
}"""
MISSED_BARRIER = """	setp.lt.u32 %p1, %r1, 40;
	@%p1 bra $L1;
	bar.sync 0;
$L1:
	st.global.b32 [%rd3], %r1;
	ret;
}"""
MISSED_SHUFFLE = """	setp.lt.u32 %p1, %r1, 40;
	@%p1 bra $L1;
	shfl.sync.bfly.b32 %r1, %r1, 1, 31, -1;
$L1:
	st.global.b32 [%rd3], %r1;
	ret;
}"""
# Each thread writes its number, and reads what the one 32 further wrote, or has not written yet.
GLOBAL_RACE = """	st.global.b32 [%rd3], %r1;
	xor.b32 %r5, %r2, 128;
	cvt.u64.u32 %rd4, %r5;
	add.s64 %rd4, %rd1, %rd4;
	ld.global.b32 %r6, [%rd4];
	BARRIER
	st.global.b32 [%rd3], %r6;
	ret;
}"""
ONE_PLACE = "	st.global.b32 [%rd1], %r1;\n	ret;\n}"
MISALIGNED = "	st.global.b32 [%rd1+2], %r1;\n	ret;\n}"
BARRIER = "bar.sync 0;"
NUMBERS = torch.arange(64, dtype=torch.int32)


def by_hand(body, size=64, grid=(1, 1, 1)):
    out = torch.full((size,), -1, dtype=torch.int32)
    launch.run(program.load(HEAD + body, "k"), grid, 2, 256, [("*i32", out)], [("out", out)])
    return out


def test_threads_hand_numbers_on():
    assert torch.equal(by_hand(HANDED_ON.replace("BARRIER", BARRIER)), NUMBERS ^ 32)


def test_threads_that_went_apart_meet_again():
    assert torch.equal(by_hand(APART), NUMBERS * (NUMBERS + 1) // 2)


FAULTS = {
    "race in shared memory": (HANDED_ON.replace("BARRIER", ""), {}, "race: shared memory"),
    "race in global memory": (GLOBAL_RACE.replace("BARRIER", BARRIER), {}, "which warp is first"),
    "barrier": (MISSED_BARRIER, {}, "a barrier that some threads"),
    "shuffle": (MISSED_SHUFFLE, {}, "a shuffle that some threads"),
    "several values in one place": (ONE_PLACE, {}, "different values"),
    "out of bounds": (APART, {"size": 63}, "out of bounds"),
    "misaligned": (MISALIGNED, {}, "misaligned"),
    "unknown instruction": ("	frob.b32 %r1, %r2;\n	ret;\n}", {}, "not known"),
    "grid": (APART, {"grid": (1, 65_536, 1)}, "over CUDA's limits"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_planted_fault_is_found(what):
    body, options, words = FAULTS[what]
    with pytest.raises(Fault, match=words):
        by_hand(body, **options)


@triton.jit
def add_kernel(x, y, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, at < n, 0.0) + tl.load(y + at, at < n, 0.0), at < n)


@triton.jit
def functions_kernel(x, out, N: tl.constexpr):
    at = tl.arange(0, N)
    v = tl.load(x + at)
    p = tl.abs(v) + 0.01
    tl.store(out + at, tl.exp(v))
    tl.store(out + N + at, tl.log(p))
    tl.store(out + 2 * N + at, tl.maximum(v, p))
    tl.store(out + 3 * N + at, tl.sqrt(p))
    tl.store(out + 4 * N + at, v / p)
    tl.store(out + 5 * N + at, tl.fma(v, p, v))
    tl.store(out + 6 * N + at, tl.floor(v))


@triton.jit
def integers_kernel(x, y, out, N: tl.constexpr):
    at = tl.arange(0, N)
    a, b = tl.load(x + at), tl.load(y + at)
    tl.store(out + at, a // b)
    tl.store(out + N + at, a * b)
    tl.store(out + 2 * N + at, a >> (b & 7))
    tl.store(out + 3 * N + at, tl.where(a < b, a - b, -a))


@triton.jit
def cast_kernel(x, out, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out + at, tl.load(x + at).to(out.dtype.element_ty))


@triton.jit
def sums_kernel(x, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    r, c = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    values = tl.load(x + r[:, None] * COLUMNS + c[None, :])
    tl.store(rows + r, tl.sum(values, 1))
    tl.store(columns + c, tl.max(values, 0))


FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@needs_ptx
@pytest.mark.kernels
class TestCompiled:
    """Kernels that Triton compiles, against what torch computes."""

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    @pytest.mark.parametrize("n", [1000, 999, 16])
    def test_sums_of_two(self, n, dtype):
        x, y = torch.randn(2, 1000).mul(9).to(dtype)
        out = torch.full((1000,), 7.0, dtype=dtype)
        add_kernel[(4,)](x, y, out, n, BLOCK=256)
        assert torch.equal(out[:n], (x + y)[:n])
        assert (out[n:] == 7).all()

    @pytest.mark.parametrize("dtype", FLOATS[:2], ids=str)
    def test_functions(self, dtype):
        x = torch.cat([torch.randn(512) * 3, torch.randn(512) * 0.01]).to(dtype)
        out = torch.empty(7, 1024, dtype=dtype)
        functions_kernel[(1,)](x, out, N=1024)
        v, p = x.double(), (x.abs() + 0.01).double()
        want = [v.exp(), p.log(), torch.maximum(v, p), p.sqrt(), v / p, v * p + v, v.floor()]
        error = (out.double() - torch.stack(want)).abs() / torch.stack(want).abs().clamp_min(1)
        assert error.max() < (5e-7 if dtype == torch.float32 else 5e-16)

    @pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
    def test_integers(self, dtype):
        x = torch.randint(-(2**31), 2**31 - 1, (256,)).to(dtype)
        y = torch.randint(1, 2**15 - 1, (256,)).to(dtype)
        out = torch.empty(4, 256, dtype=dtype)
        integers_kernel[(1,)](x, y, out, N=256)
        quotient = torch.div(x, y, rounding_mode="trunc")
        want = [quotient, x * y, x >> (y & 7), torch.where(x < y, x - y, -x)]
        assert torch.equal(out, torch.stack(want))

    @pytest.mark.parametrize("to", FLOATS, ids=str)
    @pytest.mark.parametrize("of", FLOATS, ids=str)
    def test_casts(self, of, to):
        special = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-40, 65519.0, 65520.0]
        sizes = 10 ** torch.linspace(-30, 30, 248)
        x = torch.cat([torch.randn(248) * sizes, torch.tensor(special)]).to(of)
        out = torch.empty(256, dtype=to)
        cast_kernel[(1,)](x, out, N=256)
        torch.testing.assert_close(out, x.to(to), rtol=0, atol=0, equal_nan=True)

    @pytest.mark.parametrize(("rows", "columns"), [(8, 64), (1, 1024), (256, 4)])
    def test_reductions(self, rows, columns):
        x, sums, most = torch.randn(rows, columns), torch.empty(rows), torch.empty(columns)
        sums_kernel[(1,)](x, sums, most, ROWS=rows, COLUMNS=columns)
        torch.testing.assert_close(sums, x.sum(1), rtol=1e-5, atol=1e-5)
        assert torch.equal(most, x.amax(0))

    def test_reading_past_the_end_is_a_fault(self):
        x, out = torch.randn(1000), torch.empty(1008)
        with pytest.raises(Fault, match="out of bounds"):
            add_kernel[(4,)](x, x, out, 1008, BLOCK=256)

    def test_what_nobody_wrote_is_nan(self):
        assert torch.empty(100).isnan().all()
