"""Gradient features of PyTorch modules, against the contraction of Jacobians that torch.func expands."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import kernelgrowth as kg  # noqa: E402
from kernelgrowth.gradients import OuterProduct, Rows  # noqa: E402
from kernelgrowth.gradients.torch import gradient_features  # noqa: E402
from torch_cases import (  # noqa: E402
    Apply,
    CharTransformer,
    Classifier,
    expanded_jacobian,
    random_module,
    reference_kernel,
    resnet18,
    worst_error,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
    pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel lengths:UserWarning"),
]


def kernel_of(module: Any, x: Any, **options: Any) -> Any:
    return kg.empirical_ntk(gradient_features(module, x, **options))


def check(module: Any, x: Any, tolerance: float = 1e-9, **options: Any) -> Any:
    feats = gradient_features(module, x, **options)
    args = x if isinstance(x, tuple) else (x,)
    assert worst_error(kg.empirical_ntk(feats), reference_kernel(module, *args)) < tolerance
    return feats


def mlp(*widths: int, dtype: Any = torch.float64) -> Any:
    layers: list[Any] = []
    for i, o in itertools.pairwise(widths):
        layers += [nn.Linear(i, o), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).to(dtype)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def x() -> Any:
    return torch.randn(5, 8, dtype=torch.float64)


class TestExactness:
    @pytest.mark.parametrize("seed", range(48))
    def test_of_modules_drawn_at_random(self, seed):
        module, x = random_module(seed)
        feats = check(module, x)
        if x.is_floating_point():
            exact = reference_kernel(module.float(), x.float())
        else:
            exact = reference_kernel(module.float(), x)
        found = kernel_of(module, x.float() if x.is_floating_point() else x)
        assert worst_error(found, exact) < 1e-5
        counted = {name for names in feats.parameters.values() for name in names}
        assert counted == {name for name, p in module.named_parameters() if p.requires_grad}

    def test_of_a_resnet18(self):
        module, x = resnet18(3, width=8).double(), torch.randn(4, 3, 32, 32, dtype=torch.float64)
        check(module, x)
        assert worst_error(kernel_of(module.float(), x.float()), reference_kernel(module, x.float())) < 1e-5

    @pytest.mark.parametrize("length", [1, 7, 20])
    def test_of_a_transformer_with_tied_embeddings(self, length):
        module = CharTransformer(11, 8, 2, 2, 20).double().eval()
        ids = torch.randint(0, 11, (5, length))
        check(module, ids)
        assert worst_error(kernel_of(module.float(), ids), reference_kernel(module, ids)) < 1e-5

    def test_of_an_lstm(self):
        module, x = Classifier(5, 6, 3).double(), torch.randn(4, 9, 5, dtype=torch.float64)
        torch.backends.mkldnn.enabled = False
        try:
            exact = reference_kernel(module, x)
        finally:
            torch.backends.mkldnn.enabled = True
        assert worst_error(kernel_of(module, x), exact) < 1e-9

    def test_of_recurrent_cells(self):
        def unrolled(parts: Any, x: Any) -> Any:
            h = c = x.new_zeros(len(x), 4)
            g = x.new_zeros(len(x), 4)
            for t in range(x.shape[1]):
                h, c = parts[0](x[:, t], (h, c))
                g = parts[1](h, g)
            return parts[2](g)

        module = Apply(unrolled, nn.LSTMCell(3, 4), nn.GRUCell(4, 4), nn.Linear(4, 2)).double()
        check(module, torch.randn(4, 5, 3, dtype=torch.float64))

    def test_of_three_dimensional_convolutions(self):
        module = Apply(
            lambda parts, x: parts[1](torch.tanh(parts[0](x))).mean((2, 3, 4)),
            nn.Conv3d(2, 3, (2, 2, 1), stride=(1, 2, 1), padding=(0, 1, 0)),
            nn.ConvTranspose3d(3, 2, 2, dilation=2),
        ).double()
        check(module, torch.randn(3, 2, 3, 4, 3, dtype=torch.float64))

    def test_of_a_class_token_positions_and_heads_with_weights_of_their_own(self, x):
        class Vision(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.token = nn.Parameter(torch.randn(1, 1, 4))
                self.positions = nn.Embedding(9, 4)
                self.table = nn.Parameter(torch.randn(6, 4))
                self.heads = nn.Parameter(torch.randn(2, 2, 3))
                self.last = nn.Linear(6, 3)

            def forward(self, x: Any) -> Any:
                x = torch.cat([self.token.expand(len(x), -1, -1), x.unflatten(1, (2, 4))], 1)
                x = x + self.positions(torch.arange(3)) + self.table[[0, 3, 3]]
                x = torch.einsum("nthd,hde->nthe", x.unflatten(2, (2, 2)), self.heads).flatten(2)
                return self.last(torch.tanh(x)).sum(1)

        check(Vision().double(), x)

    def test_of_layers_after_which_numbers_are_changed_in_place(self, x):
        check(nn.Sequential(nn.Linear(8, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)).double(), x)

    def test_of_weights_that_are_scaled_before_they_are_used(self, x):
        def scaled(parts: Any, x: Any) -> Any:
            hidden = torch.tanh(functional.linear(x, parts[0].weight / 8**0.5, 0.1 * parts[0].bias))
            return functional.linear(hidden, -parts[1].weight * 0.3)

        feats = check(Apply(scaled, nn.Linear(8, 6), nn.Linear(6, 3, bias=False)).double(), x)
        assert isinstance(feats["parts.1"], OuterProduct)

    @pytest.mark.parametrize(
        "module",
        [
            nn.utils.parametrizations.weight_norm(nn.Linear(8, 3)),
            Apply(lambda parts, x: parts[0](x, x.flip(1)), nn.Bilinear(8, 8, 3)),
            Apply(lambda p, x: p[1](torch.where(x > 0, x, p[0].weight[0])), nn.Linear(8, 1), nn.Linear(8, 3)),
        ],
        ids=["weight norm", "bilinear", "where"],
    )
    def test_of_operations_that_are_not_understood(self, module, x):
        feats = check(copy.deepcopy(module).double(), x)
        assert any(isinstance(block, Rows) for block in feats.values())

    def test_of_what_cannot_be_vectorised(self, x):
        def forked(parts: Any, x: Any) -> Any:
            y = parts[0](x, x)
            # Asks for a number, which vmap refuses.
            return y if float(y.detach().abs().sum()) >= 0 else -y

        module = Apply(forked, nn.Bilinear(8, 8, 2)).double()
        rows = torch.stack(
            [
                torch.cat([g.flatten() for g in torch.autograd.grad(module(x)[n, c], tuple(module.parameters()))])
                for n in range(5)
                for c in range(2)
            ]
        )
        assert worst_error(kernel_of(module, x), rows @ rows.T) < 1e-9

    def test_below_a_layer_that_begins_at_zero(self):
        head = nn.Linear(8, 3)
        nn.init.zeros_(head.weight)
        module = Apply(
            lambda p, x: p[1](torch.tanh(p[0](x.transpose(0, 1).contiguous()))).mean(0),
            nn.Linear(8, 8),
            head,
        ).double()
        feats = check(module, torch.randn(4, 6, 8, dtype=torch.float64))
        assert feats.parameters["parts.0"] == ["parts.0.weight", "parts.0.bias"]

    def test_of_sparse_embeddings(self):
        ids = torch.randint(0, 40, (4, 3))
        module = Apply(
            lambda p, ids: p[1](torch.tanh(p[0](ids)).mean(1)), nn.Embedding(40, 4, sparse=True), nn.Linear(4, 2)
        )
        feats = gradient_features(module.double(), ids)
        assert isinstance(feats["parts.0"], kg.Embedding)
        module.parts[0].sparse = False
        assert worst_error(kg.empirical_ntk(feats), reference_kernel(module, ids)) < 1e-9

    def test_where_only_the_last_position_counts(self):
        class Last(nn.Module):
            def __init__(self, gate: bool) -> None:
                super().__init__()
                self.first, self.last, self.gate = nn.Linear(4, 6), nn.Linear(6, 3), gate

            def forward(self, x: Any) -> Any:
                y = self.last(torch.tanh(self.first(x)))
                # Of all examples but the first three, another position counts too.
                extra = (x[:, 0, :1] > 5.0) * y[:, 0] if self.gate else 0.0
                return y[:, -1] + extra

        x = torch.randn(6, 7, 4, dtype=torch.float64)
        feats = check(Last(gate=False).double(), x)
        assert feats["last"].num_positions == feats["first"].num_positions == 1
        x[4:, 0, 0] = 10.0
        feats = check(Last(gate=True).double(), x)
        assert feats.num_examples == 6

    def test_of_one_example(self):
        check(CharTransformer(5, 4, 1, 1, 6).double(), torch.randint(0, 5, (1, 6)))

    def test_rectangular(self, x):
        module = mlp(8, 5, 2)
        both = reference_kernel(module, x)
        feats, others = gradient_features(module, x[:2]), gradient_features(module, x[2:])
        kernel = kg.empirical_ntk(feats, others)
        assert torch.allclose(kernel.permute(0, 2, 1, 3).reshape(4, 6), both[:4, 4:])

    def test_of_rectangular_kernels_of_token_ids(self):
        module = CharTransformer(50, 4, 1, 1, 6).double()
        module.forward = lambda ids: module.norm(module.embedding(ids).mean(1))[:, :2]
        ids = torch.randint(0, 50, (6, 4))
        both = reference_kernel(module, ids)
        kernel = kg.empirical_ntk(gradient_features(module, ids[:2]), gradient_features(module, ids[2:]))
        assert torch.allclose(kernel.permute(0, 2, 1, 3).reshape(4, 8), both[:4, 4:])


class TestArguments:
    def test_batches_change_nothing_but_rounding(self):
        module, x = random_module(5)
        whole = kernel_of(module, x)
        for size in (1, 2, 100):
            assert torch.allclose(kernel_of(module, x, batch_size=size), whole, rtol=1e-12)

    def test_keyword_and_positional_inputs(self, x):
        module = Apply(lambda parts, a, b: parts[0](a) * parts[1](b), nn.Linear(8, 3), nn.Linear(8, 3)).double()
        check(module, (x, x.flip(0)))
        assert torch.equal(kernel_of(module, {"a": x, "b": x.flip(0)}), kernel_of(module, (x, x.flip(0))))

    def test_output_chooses_from_what_the_module_returns(self, x):
        module = Apply(lambda parts, x: {"hidden": x, "y": parts[0](x)}, nn.Linear(8, 4)).double()
        feats = gradient_features(module, x, output=lambda result: result["y"][:, :2])
        assert feats.num_outputs == 2

    def test_logits_are_found(self, x):
        class Result:
            def __init__(self, logits: Any) -> None:
                self.logits = logits

        module = Apply(lambda parts, x: Result(parts[0](x)), nn.Linear(8, 4)).double()
        assert gradient_features(module, x).num_outputs == 4

    def test_the_sum_of_outputs(self, x):
        module = mlp(8, 6, 3)
        rows = torch.cat(list(expanded_jacobian(module, x).values()), 2).sum(1)
        feats = gradient_features(module, x, outputs="sum_logits")
        assert feats.num_outputs == 1
        assert torch.allclose(kg.empirical_ntk(feats), rows @ rows.T)

    def test_some_parameters(self, x):
        module = mlp(8, 6, 3)
        for chosen, names in (
            (["0"], ["0.weight", "0.bias"]),
            (["2.bias", "0.weight"], ["0.weight", "2.bias"]),
            (lambda name, tensor: tensor.ndim == 1, ["0.bias", "2.bias"]),
        ):
            jacobian = expanded_jacobian(module, x)
            rows = torch.cat([jacobian[name] for name in names], 2).flatten(0, 1)
            assert worst_error(kernel_of(module, x, parameters=chosen), rows @ rows.T) < 1e-9

    def test_frozen_parameters_are_left_out(self, x):
        module = mlp(8, 6, 3)
        module[0].weight.requires_grad_(False)
        feats = check(module, x)
        assert "0.weight" not in [name for names in feats.parameters.values() for name in names]

    def test_parameters_that_are_not_used_are_left_out(self, x):
        feats = check(Apply(lambda parts, x: parts[0](x), nn.Linear(8, 2), nn.Linear(8, 2)).double(), x)
        assert list(feats) == ["parts.0"]

    def test_predictions_and_names(self, x):
        module = mlp(8, 6, 3)
        feats = gradient_features(module, x)
        assert np.array_equal(feats.predictions, module(x).detach().numpy())
        assert feats.parameters == {"0": ["0.weight", "0.bias"], "2": ["2.weight", "2.bias"]}

    def test_results_are_tensors(self, x):
        assert isinstance(kernel_of(mlp(8, 2), x), torch.Tensor)

    @pytest.mark.parametrize("seed", range(12))
    def test_preconditioners_by_block(self, seed):
        module, x = random_module(seed)
        rates = {name: torch.rand_like(p) for name, p in module.named_parameters()}
        feats = gradient_features(module, x)
        kernel = kg.empirical_ntk(feats, preconditioner=feats.by_block(rates))
        rows = torch.cat(
            [j * rates[name].flatten().sqrt() for name, j in expanded_jacobian(module, x).items()], 2
        ).flatten(0, 1)
        assert worst_error(kernel, rows @ rows.T) < 1e-9

    def test_what_by_block_needs(self, x):
        feats = gradient_features(mlp(8, 6, 3), x)
        with pytest.raises(ValueError, match=r"arrays must hold parameter '0.weight'"):
            feats.by_block({})
        with pytest.raises(ValueError, match=r"arrays\['0.bias'\] must have the 6 entries"):
            feats.by_block({"0.weight": torch.ones(6, 8), "0.bias": torch.ones(5)})

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"outputs": "all"}, ValueError, "outputs must be one of"),
            ({"verify": "yes"}, ValueError, "verify must be one of"),
            ({"batch_size": 0}, ValueError, "batch_size must be"),
            ({"output": 3}, TypeError, "output must be callable"),
            ({"parameters": ["nothing"]}, ValueError, "no parameter or part 'nothing'"),
            ({"parameters": lambda name, tensor: False}, ValueError, "no parameter that requires a gradient"),
            ({"memory_limit": 100}, kg.MemoryLimitError, "memory_limit is 100 B, which holds 0 examples"),
        ],
    )
    def test_what_is_refused(self, x, options, error, message):
        with pytest.raises(error, match=message):
            gradient_features(mlp(8, 6, 3), x, **options)

    @pytest.mark.parametrize(
        ("bad", "error", "message"),
        [
            (np.ones((3, 8)), TypeError, "x must be a tensor"),
            ((torch.ones(3, 8), 2), TypeError, r"x\[1\] must be a tensor"),
            (torch.ones(0, 8), ValueError, r"x\[0\] must hold at least one example"),
            ((torch.ones(3, 8), torch.ones(2, 8)), ValueError, "same N examples"),
        ],
    )
    def test_inputs_that_are_refused(self, bad, error, message):
        with pytest.raises(error, match=message):
            gradient_features(mlp(8, 2), bad)


class TestRefusals:
    def test_batch_normalisation_in_training_mode(self, x):
        module = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)).double()
        with pytest.raises(ValueError, match=r"module\.1 is BatchNorm1d in training mode.*module\.eval\(\)"):
            gradient_features(module, x)

    def test_batch_normalisation_without_running_statistics(self, x):
        module = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6, track_running_stats=False)).double().eval()
        with pytest.raises(ValueError, match="without running statistics"):
            gradient_features(module, x)

    def test_embeddings_that_change_their_weights(self):
        with pytest.raises(ValueError, match=r"module is Embedding with max_norm"):
            gradient_features(nn.Embedding(5, 3, max_norm=1.0), torch.zeros(3, dtype=torch.int64))

    @pytest.mark.parametrize(
        "layer", [nn.Dropout(0.1), nn.Dropout1d(), nn.AlphaDropout(0.2)], ids=lambda layer: type(layer).__name__
    )
    def test_dropout_in_training_mode(self, x, layer):
        module = nn.Sequential(nn.Linear(8, 6), layer, nn.Linear(6, 2)).double()
        with pytest.raises(ValueError, match=rf"module\.1 is {type(layer).__name__} with dropout"):
            gradient_features(module, x)
        check(module.eval(), x)

    def test_dropout_that_no_layer_shows(self, x):
        module = Apply(lambda parts, x: parts[0](functional.dropout(x, 1e-6)), nn.Linear(8, 2)).double()
        with pytest.raises(ValueError, match="draws random numbers"):
            gradient_features(module, x)

    @pytest.mark.parametrize(
        "mix",
        [
            lambda h: h - h.mean(0),
            lambda h: h + h.flip(0),
            lambda h: torch.softmax(h @ h.T, 1) @ h,
            lambda h: h / h.norm(),
        ],
        ids=["centred", "flipped", "attention", "normed"],
    )
    def test_examples_that_depend_on_one_another(self, x, mix):
        module = Apply(lambda p, x: p[1](mix(torch.tanh(p[0](x)))), nn.Linear(8, 6), nn.Linear(6, 2)).double()
        with pytest.raises(ValueError, match="depend on"):
            gradient_features(module, x)

    def test_dependence_that_only_gradients_show(self, x):
        # The batch's mean is taken away from what is added of it: outputs are as if it were not there.
        def hidden(parts: Any, x: Any) -> Any:
            h = torch.tanh(parts[0](x))
            return parts[1](h + h.mean(0) - h.mean(0).detach())

        module = Apply(hidden, nn.Linear(8, 6), nn.Linear(6, 2)).double()
        with pytest.raises(ValueError, match=r"parameter 'parts\.0\.weight' shows that an example's outputs depend"):
            gradient_features(module, x)

    def test_a_module_that_shuffles(self, x):
        generator = np.random.default_rng(0)

        def shuffled(parts: Any, x: Any) -> Any:
            return parts[0](x[torch.from_numpy(generator.permutation(len(x)))])

        with pytest.raises(ValueError, match="depend on the batch, or calling the module twice"):
            gradient_features(Apply(shuffled, nn.Linear(8, 2)).double(), x)

    def test_a_module_that_treats_single_examples_differently(self, x):
        module = Apply(lambda parts, x: parts[0](x) * (1 if len(x) > 1 else 2), nn.Linear(8, 2)).double()
        with pytest.raises(ValueError, match=r"gradients of parts\.0\.weight, parts\.0\.bias .* not those"):
            gradient_features(module, x)
        gradient_features(module, x, verify="never")

    def test_a_module_whose_operations_depend_on_the_examples(self, x):
        def forked(parts: Any, x: Any) -> Any:
            y = parts[0](x)
            return y.tanh() if len(x) > 3 else y

        with pytest.raises(ValueError, match="other operations"):
            gradient_features(Apply(forked, nn.Linear(8, 2)).double(), x)

    def test_half_precision_and_mixed_parameters(self, x):
        with pytest.raises(TypeError, match=r"parameter '0.weight' is torch.bfloat16.*\.float\(\)"):
            gradient_features(mlp(8, 6, 2, dtype=torch.bfloat16), x)
        module = mlp(8, 6, 2)
        module[2].float()
        with pytest.raises(TypeError, match="'2.weight' has dtype torch.float32 but '0.weight' torch.float64"):
            gradient_features(module, x)

    def test_the_meta_device(self, x):
        with pytest.raises(ValueError, match="meta device"):
            gradient_features(nn.Linear(8, 2, device="meta"), x)

    def test_outputs_of_other_shapes(self, x):
        with pytest.raises(ValueError, match=r"got shape \(3, 2, 2\): say by output="):
            gradient_features(Apply(lambda parts, x: parts[0](x).unflatten(1, (2, 2)), nn.Linear(8, 4)).double(), x)
        with pytest.raises(TypeError, match="got tuple: say by output="):
            gradient_features(Apply(lambda parts, x: (parts[0](x),), nn.Linear(8, 4)).double(), x)

    def test_outputs_that_depend_on_no_parameter(self, x):
        with pytest.raises(ValueError, match="do not depend on any parameter"):
            gradient_features(Apply(lambda parts, x: x, nn.Linear(8, 4)).double(), x)

    def test_checkpoints_that_hide_parameters(self, x):
        from torch.utils.checkpoint import checkpoint

        def hidden(reentrant: bool) -> Any:
            return Apply(
                lambda parts, x: parts[1](checkpoint(parts[0], parts[2](x), use_reentrant=reentrant)),
                nn.Linear(8, 8),
                nn.Linear(8, 2),
                nn.Linear(8, 8),
            ).double()

        with pytest.raises(ValueError, match="use_reentrant=False"):
            gradient_features(hidden(True), x)
        module = hidden(False)
        plain = Apply(lambda parts, x: parts[1](parts[0](parts[2](x))), *module.parts)
        assert worst_error(kernel_of(module, x), reference_kernel(plain, x)) < 1e-9

    def test_values_that_are_not_finite(self, x):
        module = mlp(8, 6, 2)
        with torch.no_grad():
            module[2].weight[0, 0] = torch.nan
        with pytest.raises(ValueError, match="must be finite"):
            gradient_features(module, x, verify="never")

    def test_anything_that_is_no_module(self, x):
        with pytest.raises(TypeError, match="module must be a torch.nn.Module, got function"):
            gradient_features(lambda x: x, x)


def state_of(module: Any) -> list[Any]:
    return [
        [tensor.detach().clone() for tensor in (*module.parameters(), *module.buffers())],
        [None if p.grad is None else p.grad.clone() for p in module.parameters()],
        [p.requires_grad for p in module.parameters()],
        [part.training for part in module.modules()],
        [
            (len(part._forward_hooks), len(part._forward_pre_hooks), len(part._backward_hooks))
            for part in module.modules()
        ],
        torch.get_rng_state(),
        torch.is_grad_enabled(),
        torch.backends.mkldnn.enabled,
    ]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, list):
        return len(a) == len(b) and all(same(p, q) for p, q in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


class TestTheModuleIsLeftAsItWas:
    @pytest.mark.parametrize("seed", range(6))
    def test_after_a_capture(self, seed):
        module, x = random_module(seed)
        module.parts[1].train()
        module.parts[0].register_forward_hook(lambda *args: None)
        (module(x) ** 2).sum().backward()
        before = state_of(module)
        gradient_features(module, x)
        assert same(before, state_of(module))

    def test_after_recurrent_layers(self):
        module, x = Classifier(5, 6, 3), torch.randn(4, 9, 5)
        before = state_of(module)
        gradient_features(module, x)
        assert same(before, state_of(module))

    def test_after_a_refusal(self, x):
        class Counting(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("calls", torch.zeros(()))
                self.linear = nn.Linear(8, 2)

            def forward(self, x: Any) -> Any:
                self.calls += 1
                return self.linear(x)

        module = Counting().double()
        before = state_of(module)
        with pytest.raises(ValueError, match="changes its buffer 'calls'"):
            gradient_features(module, x)
        assert same(before, state_of(module))

    def test_after_random_numbers_were_refused(self, x):
        module = Apply(lambda parts, x: parts[0](x) + 1e-9 * torch.randn(()), nn.Linear(8, 2)).double()
        before = state_of(module)
        with pytest.raises(ValueError, match="draws random numbers"):
            gradient_features(module, x)
        assert same(before, state_of(module))

    def test_hooks_on_parameters_are_not_called(self, x):
        module = mlp(8, 6, 2)
        called = []
        module[0].weight.register_hook(called.append)
        module[0].weight.register_post_accumulate_grad_hook(called.append)
        check(module, x, verify="never")
        assert not called

    def test_within_other_modes(self, x):
        module = mlp(8, 6, 2)
        wanted = kernel_of(module, x)
        with torch.no_grad():
            assert torch.equal(kernel_of(module, x), wanted)
        with torch.inference_mode():
            assert torch.equal(kernel_of(module, x.clone()), wanted)
        single = module.float()
        wanted = kernel_of(single, x.float())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(kernel_of(single, x.float()), wanted)

    def test_float32_is_not_rounded_to_tf32(self, x):
        backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
        seen = []

        class Watched(nn.Linear):
            def forward(self, x):
                seen.append(any(backend.allow_tf32 for backend in backends))
                return super().forward(x)

        before = [backend.allow_tf32 for backend in backends]
        try:
            for backend in backends:
                backend.allow_tf32 = True
            gradient_features(Watched(8, 2).double(), x)
            assert seen
            assert not any(seen)
            assert all(backend.allow_tf32 for backend in backends)
        finally:
            for backend, allowed in zip(backends, before, strict=True):
                backend.allow_tf32 = allowed

    def test_wrapped_modules(self, x):
        # Data parallelism takes its module to the first GPU.
        device = "cuda" if torch.cuda.is_available() else "cpu"
        module, x = mlp(8, 6, 2).to(device), x.to(device)
        wanted = kernel_of(module, x)
        assert torch.equal(kernel_of(nn.DataParallel(module), x), wanted)
        compiled = torch.compile(module, backend="eager")
        compiled(x)
        assert torch.equal(kernel_of(compiled, x), wanted)
        module.compile(backend="eager")
        module(x)
        assert torch.equal(kernel_of(module, x), wanted)


class TestWhatIsRememberedOfAModule:
    """What was found out about a module is used again; nothing of it may be out of date."""

    def test_new_weights_give_a_new_kernel(self):
        for module, x in (
            random_module(3),
            random_module(8),
            (Classifier(5, 6, 3).double(), torch.randn(3, 4, 5).double()),
        ):
            first = kernel_of(module, x)
            with torch.no_grad():
                for p in module.parameters():
                    p.add_(0.1 * torch.randn_like(p))
            again = gradient_features(module, x)
            fresh = gradient_features(copy.deepcopy(module), x)
            assert torch.equal(kg.empirical_ntk(again), kg.empirical_ntk(fresh))
            assert not torch.allclose(kg.empirical_ntk(again), first)

    def test_what_weights_are_multiplied_by_is_read_again(self, x):
        class Scaled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(8, 3)
                self.register_buffer("scale", torch.tensor(2.0))
                self.rows = torch.tensor([0, 2])

            def forward(self, x: Any) -> Any:
                return functional.linear(x, self.linear.weight[self.rows] * self.scale, self.linear.bias[self.rows])

        module = Scaled().double()
        check(module, x)
        module.scale.fill_(3.0)
        check(module, x)
        module.rows = torch.tensor([2, 1])
        check(module, x)

    def test_other_operations_are_found_out_anew(self, x):
        module = mlp(8, 6, 3)
        check(module, x)
        module[1] = nn.LayerNorm(6).double()
        check(module, x)
        module[2] = nn.Linear(6, 4).double()
        check(module, x)

    def test_freezing_and_other_choices(self, x):
        module = mlp(8, 6, 3)
        for frozen in (False, True, False):
            module[0].weight.requires_grad_(not frozen)
            check(module, x)
        assert gradient_features(module, x, output=lambda y: y[:, :2]).num_outputs == 2
        assert gradient_features(module, x, output=lambda y: y[:, 2:]).num_outputs == 1

    def test_training_mode_is_refused_later_too(self, x):
        module = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)).double().eval()
        check(module, x)
        with pytest.raises(ValueError, match="in training mode"):
            gradient_features(module.train(), x)

        training = False
        functional_norm = Apply(
            lambda p, x: p[1](
                functional.batch_norm(p[0](x), torch.zeros(6).double(), torch.ones(6).double(), training=training)
            ),
            nn.Linear(8, 6),
            nn.Linear(6, 2),
        ).double()
        check(functional_norm, x)
        training = True
        with pytest.raises(ValueError, match="depend on"):
            gradient_features(functional_norm, x)

    def test_a_module_is_let_go(self, x):
        import gc
        import weakref

        module = mlp(8, 6, 3)
        gradient_features(module, x)
        gone = weakref.ref(module)
        del module
        gc.collect()
        assert gone() is None
