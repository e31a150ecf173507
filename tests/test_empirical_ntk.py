from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import reference
from kernelgrowth import MemoryLimitError
from kernelgrowth._backend import native
from kernelgrowth.gradients import GradientFeatures, OuterProduct, Rows
from kernelgrowth.kernels import empirical_ntk
from memory import smallest_limit
from strategies import OUTPUTS, cases, modes

PROMISE = {np.float32: 1e-5, np.float64: 1e-12}


def assert_within_promise(kernel, case, outputs):
    j1, j2 = (reference.jacobian(blocks) for blocks in case.block_pair)
    exact = reference.ntk(j1, j2, outputs)
    assert kernel.shape == exact.shape
    assert kernel.dtype == case.dtype
    assert np.all(np.abs(kernel - exact) <= PROMISE[case.dtype] * reference.entry_scale(j1, j2, outputs))


def random_features(rng, n=12, c=2, dtype=np.float64, scale=1.0):
    return GradientFeatures(
        {
            "dense": OuterProduct(
                rng.normal(size=(n, 5)).astype(dtype),
                rng.normal(size=(n, c, 4)).astype(dtype),
                bias=True,
                scale=scale,
            ),
            "conv": OuterProduct(
                rng.normal(size=(n, 3, 6)).astype(dtype),
                rng.normal(size=(n, c, 3, 4)).astype(dtype),
                bias=True,
                scale=scale,
            ),
            "norm": Rows(rng.normal(size=(n, c, 7)).astype(dtype), scale=scale),
        }
    )


@settings(max_examples=150)
@given(cases(), modes)
def test_equals_the_expanded_jacobian(case, outputs):
    assert_within_promise(empirical_ntk(*case.pair, outputs=outputs), case, outputs)


@settings(max_examples=60)
@given(cases(max_examples=20, max_length=40, max_positions=5), modes)
def test_positions_equal_the_expanded_jacobian(case, outputs):
    assert_within_promise(empirical_ntk(*case.pair, outputs=outputs), case, outputs)


@settings(max_examples=60)
@given(cases(max_positions=3, max_length=60, symmetric=True), modes)
def test_symmetric_to_the_bit_and_positive_semidefinite(case, outputs):
    kernel = empirical_ntk(case.features[0], outputs=outputs)
    matrices = kernel if kernel.ndim == 3 else [reference.as_matrix(kernel)]
    for matrix in matrices:
        assert np.array_equal(matrix, matrix.T)
        eigenvalues = np.linalg.eigvalsh(matrix.astype(np.float64))
        assert eigenvalues[0] >= -len(matrix) * PROMISE[case.dtype] * abs(eigenvalues[-1])


@settings(max_examples=40)
@given(cases(max_positions=2), modes)
def test_same_bits_for_any_number_of_threads_and_on_repetition(case, outputs):
    kernel = empirical_ntk(*case.pair, outputs=outputs, num_threads=1)
    for threads in (1, 2, 3):
        assert np.array_equal(kernel, empirical_ntk(*case.pair, outputs=outputs, num_threads=threads))


@settings(max_examples=40)
@given(cases(max_positions=1, max_blocks=2))
def test_same_bits_whatever_the_memory(case):
    features, other = case.pair
    kernel = empirical_ntk(features, other)
    with pytest.raises(MemoryLimitError) as caught:
        empirical_ntk(features, other, memory_limit=1)
    assert np.array_equal(kernel, empirical_ntk(features, other, memory_limit=caught.value.needed))


@settings(max_examples=40)
@given(cases(symmetric=True, max_positions=2))
def test_a_rectangular_kernel_with_itself_has_the_bits_of_the_symmetric_one(case):
    (features,) = case.features
    assert np.array_equal(empirical_ntk(features, features), empirical_ntk(features))


@settings(max_examples=40)
@given(cases(max_examples=60, symmetric=True, max_positions=2), modes, st.randoms(use_true_random=False))
def test_equivariant_under_permutations_of_the_examples(case, outputs, random):
    (features,) = case.features
    order = list(range(features.num_examples))
    random.shuffle(order)
    permuted = GradientFeatures(
        {
            name: Rows(block.rows[order], scale=block.scale)
            if isinstance(block, Rows)
            else OuterProduct(block.activations[order], block.backprops[order], bias=block.bias, scale=block.scale)
            for name, block in features.items()
        }
    )
    kernel = empirical_ntk(features, outputs=outputs)
    expected = kernel[:, order][:, :, order] if kernel.ndim == 3 else kernel[order][:, order]
    assert np.array_equal(empirical_ntk(permuted, outputs=outputs), expected)


@settings(max_examples=40)
@given(cases(max_positions=2), modes)
def test_per_layer_kernels_add_up(case, outputs):
    parts = empirical_ntk(*case.pair, outputs=outputs, per_layer=True)
    assert list(parts) == list(case.features[0])
    total = sum(part.astype(np.float64) for part in parts.values())
    j1, j2 = (reference.jacobian(blocks) for blocks in case.block_pair)
    tolerance = 2 * PROMISE[case.dtype] * reference.entry_scale(j1, j2, outputs)
    assert np.all(np.abs(total - empirical_ntk(*case.pair, outputs=outputs)) <= tolerance)


@settings(max_examples=30)
@given(cases(max_examples=40), modes, st.integers(-20, 20))
def test_scaling_by_powers_of_two_is_exact(case, outputs, exponent):
    def scaled(features):
        if features is None:
            return None
        factor = case.dtype(2.0**exponent)
        return GradientFeatures(
            {
                name: Rows(block.rows * factor, scale=block.scale)
                if isinstance(block, Rows)
                else OuterProduct(block.activations, block.backprops * factor, bias=block.bias, scale=block.scale)
                for name, block in features.items()
            }
        )

    kernel = empirical_ntk(*map(scaled, case.pair), outputs=outputs)
    assert np.array_equal(kernel, empirical_ntk(*case.pair, outputs=outputs) * case.dtype(4.0**exponent))


@pytest.mark.parametrize("isa", native.info()["available_isas"])
@settings(max_examples=20)
@given(case=cases(max_examples=100, max_blocks=1, symmetric=True))
def test_every_instruction_set(isa, case):
    (features,) = case.features
    (block,) = features.values()
    if isinstance(block, Rows):
        term = native.GramTerm(native.Factor(block.rows), scale=block.scale)
    else:
        factors = native.Factor(block.activations[:, :1]), native.Factor(block.backprops[:, :, 0])
        term = native.GramTerm(*factors, offset=float(block.bias), scale=block.scale)
    rows = features.num_examples * features.num_outputs
    out = np.full((rows, rows), np.nan, case.dtype)
    native.gram([term], out, symmetric=True, isa=isa)
    n, c = features.num_examples, features.num_outputs
    kernel = out if c == 1 else out.reshape(n, c, n, c).transpose(0, 2, 1, 3)
    assert_within_promise(kernel, case, "full")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [383, 384, 385, 800])
def test_sizes_around_the_cache_tile(n, dtype):
    rng = np.random.default_rng(n)
    a, d = rng.normal(size=(n, 30)).astype(dtype), rng.normal(size=(n, 5)).astype(dtype)
    kernel = empirical_ntk(GradientFeatures({"w": OuterProduct(a, d, bias=True)}))
    a, d = a.astype(np.float64), d.astype(np.float64)
    exact = (a @ a.T + 1) * (d @ d.T)
    scale = np.sqrt(np.diag(exact))
    assert np.all(np.abs(kernel - exact) <= PROMISE[dtype] * np.outer(scale, scale))
    assert np.array_equal(kernel, kernel.T)


def test_long_factors_do_not_lose_digits():
    ones = np.full((2, 300_000), 0.1, np.float32)
    kernel = empirical_ntk(GradientFeatures({"w": Rows(ones)}))
    exact = float(np.float32(0.1)) ** 2 * ones.shape[1]
    assert np.all(np.abs(kernel - exact) <= 1e-5 * exact)


@settings(max_examples=30)
@given(cases(max_examples=12, max_length=12, max_positions=3), modes, st.integers(0, 2**32 - 1))
def test_preconditioned(case, outputs, seed):
    rng = np.random.default_rng(seed)
    eta, roots = {}, {}
    for name, block in case.blocks[0].items():
        if "G" in block:
            arrays = [rng.random(block["G"].shape[-1])]
        else:
            arrays = [rng.random((block["D"].shape[-1], block["A"].shape[-1]))]
            arrays += [rng.random(block["D"].shape[-1])] if block["bias"] else []
        arrays = [array.astype(case.dtype) for array in arrays]
        eta[name] = arrays[0] if len(arrays) == 1 else tuple(arrays)
        roots[name] = tuple(np.sqrt(array.astype(np.float64)) for array in arrays)
    j1, j2 = (reference.jacobian(blocks, roots) for blocks in case.block_pair)
    kernel = empirical_ntk(*case.pair, outputs=outputs, preconditioner=eta)
    exact = reference.ntk(j1, j2, outputs)
    assert np.all(np.abs(kernel - exact) <= PROMISE[case.dtype] * reference.entry_scale(j1, j2, outputs))


def test_reused_layers_are_positions_of_one_block():
    """A layer applied twice: its gradient is the sum of both uses', and so not the sum of two kernels."""
    rng = np.random.default_rng(0)
    a, d = rng.normal(size=(2, 9, 4)), rng.normal(size=(2, 9, 3))
    together = GradientFeatures({"w": OuterProduct(a.transpose(1, 0, 2), d.transpose(1, 0, 2))})
    gradients = np.einsum("tno,tni->noi", d, a).reshape(9, -1)
    np.testing.assert_allclose(empirical_ntk(together), gradients @ gradients.T, rtol=1e-12)


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_out_is_written_and_returned(outputs):
    features = random_features(np.random.default_rng(1))
    kernel = empirical_ntk(features, outputs=outputs)
    out = np.full(kernel.shape, np.nan)
    assert empirical_ntk(features, outputs=outputs, out=out) is out
    assert np.array_equal(out, kernel)
    wide = np.full((*kernel.shape[:-1], 2 * kernel.shape[-1]), np.nan)
    strided = wide[..., ::2]
    empirical_ntk(features, outputs=outputs, out=strided)
    assert np.array_equal(strided, kernel)
    assert np.isnan(wide[..., 1::2]).all()


def test_chunks_of_an_expanded_block_add_up_to_the_same_kernel():
    rng = np.random.default_rng(5)
    a, d = rng.normal(size=(60, 2, 300)), rng.normal(size=(60, 3, 2, 200))
    features = GradientFeatures({"conv": OuterProduct(a, d, bias=True)})
    with pytest.raises(MemoryLimitError) as caught:
        empirical_ntk(features, memory_limit=10_000)
    exact = empirical_ntk(features)
    small = empirical_ntk(features, memory_limit=caught.value.needed)
    np.testing.assert_allclose(small, exact, rtol=1e-11, atol=1e-11 * exact.max())


class TestRefusals:
    rng = np.random.default_rng(3)

    def test_unknown_mode(self):
        with pytest.raises(ValueError, match="outputs must be one of 'full'"):
            empirical_ntk(random_features(self.rng), outputs="logits")

    def test_not_features(self):
        with pytest.raises(TypeError, match="feats must be GradientFeatures, got ndarray"):
            empirical_ntk(np.eye(3))

    @pytest.mark.parametrize(
        ("other", "error", "match"),
        [
            (random_features(rng, c=3), ValueError, "feats2 must have the C = 2 outputs"),
            (random_features(rng, dtype=np.float32), TypeError, "feats2 is float32 but feats is float64"),
            (random_features(rng, scale=2.0), ValueError, r"feats2\['dense'\] is .* another parameter"),
            (
                GradientFeatures({"dense": Rows(rng.normal(size=(3, 2, 4)))}),
                ValueError,
                "must have the blocks of feats",
            ),
        ],
    )
    def test_other_parameters(self, other, error, match):
        with pytest.raises(error, match=match):
            empirical_ntk(random_features(self.rng), other)

    def test_unusable_out(self):
        features = random_features(self.rng, c=1)
        with pytest.raises(ValueError, match=r"out must have shape \(12, 12\)"):
            empirical_ntk(features, out=np.empty((12, 13)))
        with pytest.raises(TypeError, match="out must be float64"):
            empirical_ntk(features, out=np.empty((12, 12), np.float32))
        with pytest.raises(TypeError, match="out must be a NumPy array"):
            empirical_ntk(features, out=[[0.0]])
        read_only = np.empty((12, 12))
        read_only.flags.writeable = False
        with pytest.raises(ValueError, match="out is read-only"):
            empirical_ntk(features, out=read_only)
        shared = np.random.default_rng(0).normal(size=(4, 1, 4))
        with pytest.raises(ValueError, match="out overlaps the features"):
            empirical_ntk(GradientFeatures({"w": Rows(shared)}), out=shared[:, 0])
        with pytest.raises(ValueError, match="out cannot be given with per_layer"):
            empirical_ntk(features, out=np.empty((12, 12)), per_layer=True)

    def test_memory_limit(self):
        features = GradientFeatures({"w": Rows(np.ones((1, 1)))})
        huge = np.broadcast_to(np.float32(1), (10_000_000, 1, 3))
        with pytest.raises(MemoryLimitError, match="memory_limit is 1.0 GiB") as caught:
            empirical_ntk(GradientFeatures({"w": Rows(huge, check_finite=False)}), memory_limit=2**30)
        assert caught.value.needed > 4 * 10**14
        assert caught.value.limit == 2**30
        with pytest.raises(MemoryLimitError):
            empirical_ntk(random_features(self.rng), per_layer=True, memory_limit=1000)
        with pytest.raises(ValueError, match="memory_limit must be at least 1"):
            empirical_ntk(features, memory_limit=0)
        with pytest.raises(TypeError, match="memory_limit must be an integer"):
            empirical_ntk(features, memory_limit=1e9)

    @pytest.mark.parametrize("threads", [0, -1, 2.5, True])
    def test_threads(self, threads):
        with pytest.raises((TypeError, ValueError), match="num_threads must be"):
            empirical_ntk(random_features(self.rng), num_threads=threads)

    @pytest.mark.parametrize(
        ("change", "error", "match"),
        [
            (lambda eta: eta.pop("norm"), ValueError, r"missing \['norm'\]"),
            (lambda eta: eta.update(head=eta["norm"]), ValueError, r"unknown \['head'\]"),
            (lambda eta: eta.update(norm=np.ones(8)), ValueError, r"preconditioner\['norm'\] must have shape \(7,\)"),
            (lambda eta: eta.update(norm=-np.ones(7)), ValueError, r"preconditioner\['norm'\] must not be negative"),
            (lambda eta: eta.update(norm=np.full(7, np.nan)), ValueError, r"preconditioner\['norm'\] must be finite"),
            (lambda eta: eta.update(dense=np.ones((4, 5))), ValueError, r"shape \(4, 5\) and \(4,\)"),
            (
                lambda eta: eta.update(norm=np.ones(7, np.float32)),
                TypeError,
                r"preconditioner\['norm'\] must be float64",
            ),
        ],
    )
    def test_preconditioner(self, change, error, match):
        eta = {name: (np.ones((4, d)), np.ones(4)) for name, d in (("dense", 5), ("conv", 6))} | {"norm": np.ones(7)}
        empirical_ntk(random_features(self.rng), preconditioner=eta)
        change(eta)
        with pytest.raises(error, match=match):
            empirical_ntk(random_features(self.rng), preconditioner=eta)

    def test_preconditioner_must_be_a_mapping(self):
        with pytest.raises(TypeError, match="preconditioner must map block names"):
            empirical_ntk(random_features(self.rng), preconditioner=1.0)


@example(n=1)
@given(n=st.integers(1, 5))
@settings(max_examples=5)
def test_dlpack_arrays_come_back_as_their_own_kind(n):
    class Exporter:
        """An array library of its own, as far as the boundary can see."""

        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **options):
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

        def __array_namespace__(self):
            return Namespace

    class Namespace:
        @staticmethod
        def from_dlpack(array):
            return Exporter(np.from_dlpack(array))

    values = np.arange(3.0 * n).reshape(n, 3)
    kernel = empirical_ntk(GradientFeatures({"w": Rows(Exporter(values))}))
    assert isinstance(kernel, Exporter)
    assert np.array_equal(kernel.array, values @ values.T)


def test_dlpack_arrays_of_unknown_libraries_give_numpy():
    class Exporter:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **options):
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    values = np.arange(6.0).reshape(2, 3)
    kernel = empirical_ntk(GradientFeatures({"w": Rows(Exporter(values))}))
    assert isinstance(kernel, np.ndarray)
    assert np.array_equal(kernel, values @ values.T)


class TestSameBits:
    """What an entry is must not depend on how the work was cut up or how the features lie in memory."""

    @staticmethod
    def features(layout=np.ascontiguousarray, *, n=20, c=2):
        rng = np.random.default_rng(9)
        a, d = rng.normal(size=(n, 3, 700)).astype(np.float32), rng.normal(size=(n, c, 3, 30)).astype(np.float32)
        return GradientFeatures(
            {
                "conv": OuterProduct(layout(a), layout(d), bias=True),
                "dense": OuterProduct(layout(a[:, 0]), layout(d[:, :, 0])),
                "rows": Rows(layout(rng.normal(size=(n, c, 70_000)).astype(np.float32))),
            }
        )

    @pytest.mark.parametrize("outputs", OUTPUTS)
    def test_whatever_the_memory_and_threads(self, outputs):
        features = self.features()
        kernel = empirical_ntk(features, outputs=outputs, num_threads=1)
        for threads in (1, 3):
            compute = functools.partial(empirical_ntk, features, outputs=outputs, num_threads=threads)
            least = smallest_limit(compute)
            for share in (1.0, 1.3, 2.5):
                assert np.array_equal(kernel, compute(memory_limit=int(share * least)))

    @pytest.mark.parametrize("outputs", OUTPUTS)
    def test_whatever_the_layout(self, outputs):
        kernel = empirical_ntk(self.features(), outputs=outputs)
        for layout in (np.asfortranarray, lambda x: x[..., ::-1].copy()[..., ::-1], lambda x: x.repeat(2, 0)[::2]):
            assert np.array_equal(kernel, empirical_ntk(self.features(layout), outputs=outputs))

    def test_many_pieces_keep_the_promise(self):
        ones = GradientFeatures(
            {"w": OuterProduct(np.full((2, 2, 8), 0.3, np.float32), np.full((2, 2, 4096), 0.7, "f4"))}
        )
        exact = (2 * float(np.float32(0.3)) * float(np.float32(0.7))) ** 2 * 8 * 4096
        for limit in (smallest_limit(functools.partial(empirical_ntk, ones)), 2**30):
            assert np.all(np.abs(empirical_ntk(ones, memory_limit=limit) - exact) <= 1e-5 * exact)


@pytest.mark.parametrize("n", [1, 3])
def test_long_rows_need_little_memory_beside_them(n):
    rows = np.random.default_rng(0).normal(size=(n, 1_000_000)).astype(np.float32)
    kernel = empirical_ntk(GradientFeatures({"w": Rows(rows)}), memory_limit=64 * 2**20, num_threads=1)
    exact = rows.astype(np.float64) @ rows.T.astype(np.float64)
    assert np.all(np.abs(kernel - exact) <= 1e-5 * np.diag(exact).max())


def test_a_kernel_out_of_range_is_refused():
    rows = np.full((2, 3), 1e25, np.float32)
    for other in (None, GradientFeatures({"w": Rows(rows)})):
        with pytest.raises(ValueError, match="feats give a kernel that float32 cannot hold"):
            empirical_ntk(GradientFeatures({"w": Rows(rows)}), other)


def test_out_may_interleave_with_the_features_but_not_overlap_itself():
    storage = np.random.default_rng(0).normal(size=(4, 1, 8))
    features = GradientFeatures({"w": Rows(storage[..., ::2])})
    out = storage[:, 0, 1::2]
    expected = storage[:, 0, ::2] @ storage[:, 0, ::2].T
    np.testing.assert_allclose(empirical_ntk(features, out=out), expected, rtol=1e-12)
    folded = np.lib.stride_tricks.as_strided(np.zeros(7), (4, 4), (8, 8))
    with pytest.raises(ValueError, match="out overlaps itself in memory"):
        empirical_ntk(features, out=folded)


def test_per_layer_says_what_it_needs():
    features = random_features(np.random.default_rng(2), n=60)
    whole = empirical_ntk(features, per_layer=True)
    limit = smallest_limit(functools.partial(empirical_ntk, features, per_layer=True))
    fitted = empirical_ntk(features, per_layer=True, memory_limit=limit)
    assert all(np.array_equal(fitted[name], whole[name]) for name in features)
    assert limit >= sum(kernel.nbytes for kernel in whole.values())
