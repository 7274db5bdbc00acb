"""Products over kept rows: the kernel on the CPU and on a GPU beside the reference, and the plain way beside it too."""

import re

import pytest
import torch
from rnn_lab.kernels.cuda_jit import missing, resources
from rnn_lab.kernels.fused import filtered_linear
from rnn_lab.kernels.fused import filtered_linear_cuda as cuda
from rnn_lab.kernels.fused.filtered_linear import FILTERED_LINEAR
from rnn_lab.tensors import relative_error
from rnn_lab.token_filter import TokenFilter, linears

from kernels.compare import DEVICE, expect_reference, random
from tests.kernels import emulation

ON_GPU = DEVICE == "cuda"


def arguments(B, T, K, heights, kept, dtype=torch.bfloat16):
    torch.manual_seed(0)
    places = torch.randperm(B * T)[:kept].sort().values.to(DEVICE)
    return random(B, T, K, dtype=dtype), tuple((random(M, K) * K**-0.5).to(dtype) for M in heights), places


@pytest.fixture
def blocks(monkeypatch):
    """How many blocks run; without a GPU they are emulated."""

    def choose(n, forwards=True):
        monkeypatch.setattr(cuda, "multiprocessors", lambda device: n)
        if not ON_GPU:
            monkeypatch.setattr(emulation.EmulatedKernel, "reversed", not forwards)

    if not ON_GPU:
        if not emulation.available():
            pytest.skip("needs g++")
        monkeypatch.setattr(cuda, "Kernel", emulation.EmulatedKernel)
        monkeypatch.setattr(cuda, "refuses", lambda *tensors: None)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(not ON_GPU)  # what nobody has written is not a number
    cuda._kernel.cache_clear()
    yield choose
    cuda._kernel.cache_clear()
    torch.use_deterministic_algorithms(before)


CASES = [
    (1, 70, 64, (64,), 40, 3),
    (2, 100, 256, (128, 64), 131, 3),
    (2, 100, 256, (128, 64), 200, 1),
    (1, 301, 320, (192, 64, 320), 200, 2),
    (1, 300, 320, (192, 64, 320), 1, 7),
    (1, 1200, 64, (64,), 1100, 4),
    (1, 1700, 64, (64, 320), 1600, 10),
    (1, 2100, 256, (64, 64), 2000, 10),
    (1, 100, 256, (448,), 70, 2),
    (1, 1100, 64, (64,), 1060, 4),
]
"""B, T, K, heights, kept positions, blocks: tiles that are not full, in K, in M and in rows; more blocks than tiles,
and fewer; all positions and one; sums in two parts and in three, equally long and not; blocks without tiles of dW."""


@pytest.mark.parametrize("forwards", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_agrees(blocks, case, forwards):
    """Every row of dx that is not kept is zero, though nothing had cleared it."""
    *shape, n = case
    blocks(n, forwards)
    expect_reference(FILTERED_LINEAR, arguments(*shape), torch.bfloat16)


@pytest.fixture
def certified(monkeypatch):
    """The kernel needs no certificate."""
    monkeypatch.setattr(FILTERED_LINEAR, "probe", None)


def test_a_filter_takes_its_own_positions_to_the_kernel(blocks, certified):
    """Under autocast, two maps of one input: gradients of the kept positions and of no other."""
    blocks(3)
    x, weights, _ = arguments(2, 100, 128, (64, 128), 1, torch.float32)
    leaves = [x.requires_grad_(), *(w.requires_grad_() for w in weights)]
    held = TokenFilter((2, 100))
    with torch.autocast(DEVICE, torch.bfloat16), held.during():
        results = linears(x, weights)
    kept_BK = torch.rand(2, 100, device=DEVICE).topk(65, 1).indices.sort(1).values
    held.keep(kept_BK)
    grads = [random(*y.shape) for y in results]
    found = torch.autograd.grad(results, leaves, grads)
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    wanted = torch.autograd.grad(
        filtered_linear.reference(wide[0], tuple(wide[1:]), held.kept_N), wide, [g.double() for g in grads]
    )
    assert held.record["filtered_linear"].backend == "cuda"
    assert all(relative_error(got, want) < 1e-2 for got, want in zip(found, wanted, strict=True))
    assert not found[0].flatten(0, 1)[~held.mask_BT.flatten()].any()


def test_it_takes_tensors_however_they_lie(blocks):
    """Time before batch, transposed matrices, every third index, rows that begin between two copies' units."""
    blocks(3)
    B, T, K, M = 4, 75, 128, 64
    g, x, w = random(T, B, M).transpose(0, 1), random(B * T * K + 1)[1:].view(B, T, K), random(K, M).mT
    g, x, w = g.bfloat16(), random(B * T * K + 1).bfloat16()[1:].view(B, T, K), w.bfloat16()
    kept = torch.arange(B * T, device=DEVICE)[::3]
    mask = filtered_linear.mask_of(x, kept).T.contiguous().T
    assert x.data_ptr() % 16 and not g.is_contiguous() and not w.is_contiguous() and not mask.is_contiguous()
    dx, (dw,) = cuda.filtered_gradients([g], x, [w], kept, mask)
    wanted, (exact,) = filtered_linear.gathered([g.double()], x.double(), [w.double()], kept)
    assert relative_error(dx, wanted) < 5e-3 and relative_error(dw, exact) < 5e-3


def test_nothing_kept_is_nothing_learnt(blocks):
    blocks(3)
    x, (w,), kept = arguments(1, 70, 64, (64,), 0)
    dx, (dw,) = cuda.filtered_gradients([random(1, 70, 64).bfloat16()], x, [w], kept, filtered_linear.mask_of(x, kept))
    assert not dx.any() and not dw.any()


def test_shapes_are_known_beforehand(blocks):
    """By torch.compile, which may choose layouts."""
    blocks(3)
    x, weights, kept = arguments(2, 40, 64, (64, 128), 20)
    mask, grads = filtered_linear.mask_of(x, kept), [random(2, 40, len(w)).bfloat16() for w in weights]
    for turned in (x, x.transpose(0, 1).contiguous().transpose(0, 1)):
        torch.library.opcheck(
            cuda.filtered_gradients, (grads, turned, list(weights), kept, mask), test_utils="test_faketensor"
        )


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
def test_ten_runs_give_the_same_bits():
    x, weights, kept = arguments(8, 512, 1024, (2048, 256), 2660)
    mask, grads = filtered_linear.mask_of(x, kept), [random(8, 512, len(w)).bfloat16() for w in weights]
    first, *others = (cuda.filtered_gradients(grads, x, weights, kept, mask) for _ in range(10))
    assert all(torch.equal(a, b) for dx, dws in others for a, b in zip((dx, *dws), (first[0], *first[1]), strict=True))


@pytest.mark.parametrize("blocks", [132, 7])
@pytest.mark.parametrize(("heights", "K"), [((2048, 2048), 2048), ((1024,), 2048), ((256,), 1024), ((64, 448), 64)])
@pytest.mark.parametrize("N", [10656, 333, 1])
def test_blocks_share_all_tiles_evenly(N, heights, K, blocks):
    """There is room for every tile, and no block has more to do than the mean and one tile of each sort."""
    share = cuda.share_of(N, heights, K, blocks)
    weights, inputs = cuda.tiles_of(N, heights, K)
    weights *= share.parts
    long, short = cuda.over(cuda.over(N, 64), share.parts) + cuda.STORE_WEIGHT, sum(heights) // 64 + cuda.STORE_INPUT
    kinds = share.split, blocks - share.split
    assert min(kinds) >= 0 and sum(n * tiles for n, tiles in zip(kinds, share.weights, strict=True)) >= weights
    assert sum(n * tiles for n, tiles in zip(kinds, share.inputs, strict=True)) >= inputs
    longest = max(w * long + x * short for n, w, x in zip(kinds, share.weights, share.inputs, strict=True) if n)
    assert longest <= (weights * long + inputs * short) / blocks + long + short


def test_long_sums_are_cut():
    """Where a tile of W's gradient takes longer than all the rest, so that its parts' sum is worth its time."""
    found = [
        cuda.share_of(*call).parts
        for call in (
            (10656, (2048,), 2048, 132),
            (10656, (2048,), 1024, 132),
            (10656, (256,), 1024, 132),
            (64, (256,), 1024, 132),
        )
    ]
    assert found[0] == found[3] == 1 < found[1] < found[2]


@pytest.mark.parametrize(("good", "bad", "noticed"), [
    ("await(empty + n % STAGES, (n / STAGES & 1) ^ 1);", "", "on its way|differs"),
    ("await(full + n % STAGES, n / STAGES & 1);", "", "never comes"),
    ("products_done<1>(), ring.read(ring.n - 1);", "products_done<1>(), ring.read(ring.n);", "never comes|differs"),
    ("products_done<1>(), ring.read(ring.n - 1);", "ring.read(ring.n - 1);", "differs"),
    ("word ^ line % 8", "word", "differs"),
    ("next[i] = n < tile.end ? int(a.kept[n]) : -1;", "next[i] = int(a.kept[min(n, tile.end - 1)]);", "differs"),
    ("lines[i] >= 0 && column", "column", "outside"),
    ("over(int(a.all), bands(a))", "int(a.all) / bands(a)", "differs"),
    ("to[0] = two[0], to[K] = two[1];", "to[0] = two[1], to[K] = two[0];", "differs"),
    ("first + 16 * i < a.N ?", "first + 16 * i + 8 < a.N ?", "differs"),
    ("ask(at + INNER);", "ask(at);", "differs"),
    ("t.end = min(int(a.N), t.begin + int(a.stages) * INNER);", "t.end = t.begin + int(a.stages) * INNER;", "differs"),
    ("        products_begin();\n", "", "nothing comes before"),
    ("i % 8 * 4 + lane / 8", "i % 8 * 4", "differs"),
    ("a.split * a.places[sort][0] - a.split", "a.split * a.places[sort][1] - a.split", "differs"),
    ("a.blocks - a.split : a.split", "a.split : a.split", "differs"),
    ("first = a.dweight[tile.map] + i64(tile.part) * M * K", "first = a.dweight[tile.map]", "differs"),
    ("half * 64 + threadIdx.x", "half * 32 + threadIdx.x", "differs"),
])  # fmt: skip
@pytest.mark.skipif(ON_GPU, reason="the emulation notices")
def test_the_emulation_notices(blocks, monkeypatch, good, bad, noticed):
    """Readers and writers that do not wait, lines that lie elsewhere, tiles that are forgotten, what is not full."""
    text = cuda.source()
    assert text.count(good) == 1
    monkeypatch.setattr(cuda, "source", lambda: text.replace(good, bad))
    with pytest.raises(AssertionError, match=noticed):
        for *shape, n in CASES[2:]:
            blocks(n)
            cuda._kernel.cache_clear()
            expect_reference(FILTERED_LINEAR, arguments(*shape), torch.bfloat16)


@pytest.mark.skipif(missing() is not None, reason="needs NVRTC")
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_compiles(arch):
    """Without spills; for older GPUs to a trap."""
    found = resources(cuda.source(), arch)["filtered"]
    assert found.spilled == found.stack == 0 and found.registers <= 65536 // cuda.THREADS // 8 * 8


def test_sizes_are_those_of_the_source():
    text = cuda.source()
    for name in ("ROWS", "COLUMNS", "INNER"):
        assert re.search(rf"\b{name} = {getattr(cuda, name)}\b", text)
    assert sum(map(int, re.search(r"MULTIPLIERS = (\d+), FETCHERS = (\d+)", text).groups())) == cuda.THREADS
    few, many = map(int, re.search(r"FEW = (\d+), MANY = (\d+)", text).groups())
    assert few * 128 + many * 256 <= cuda.THREADS * (65536 // cuda.THREADS // 8 * 8) and few % 8 == many % 8 == 0
    stage = (cuda.ROWS + cuda.COLUMNS) * cuda.INNER * 2
    assert 1023 + cuda.STAGES * (stage + 2 * 8) <= cuda.SHARED <= 227 * 1024


def test_refuses_what_it_would_round_or_cannot_take(blocks):
    refuses = FILTERED_LINEAR.backends[0].refuses
    assert "left to torch's library" in refuses(*arguments(2, 4, 64, (64,), 5, torch.float32))
    assert "multiple of 64" in refuses(*arguments(2, 4, 64, (64, 48), 5))
    assert "more than 4" in refuses(*arguments(2, 4, 64, (64,) * 5, 5))
    x, weights, kept = arguments(2, 4, 64, (64,), 5)
    meta = (
        torch.empty(1, 64, 8192, dtype=torch.bfloat16, device="meta"),
        (torch.empty(2**18 + 64, 8192, dtype=torch.bfloat16, device="meta"),),
    )
    assert "2^31" in refuses(*meta, kept)
    assert "one per position" in refuses(x[:, :, None], weights, kept)
    assert refuses(x, weights, kept) is None


def test_gathered_rows_are_the_reference():
    x, weights, kept = arguments(2, 9, 5, (4, 3), 9, torch.float64)
    leaves = [x.requires_grad_(), *(w.requires_grad_() for w in weights)]
    results = filtered_linear.reference(x, weights, kept)
    grads = [random(*y.shape, dtype=torch.float64) for y in results]
    wanted = torch.autograd.grad(results, leaves, grads)
    dx, found = filtered_linear.gathered(grads, x.detach(), [w.detach() for w in weights], kept)
    for got, want in zip([dx, *found], wanted, strict=True):
        assert relative_error(got, want) < 1e-12
