"""PyTorch modules on a GPU: features, kernels and the tracker stay there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402

import kernelgrowth as kg  # noqa: E402
from kernelgrowth.torch import NTKTracker, empirical_ntk, gradient_features, preconditioner  # noqa: E402
from torch_cases import CharTransformer, random_module, reference_kernel, resnet18, worst_error  # noqa: E402

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU here"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
    pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel lengths:UserWarning"),
]


@pytest.fixture(autouse=True)
def _needs_cupy_and_cuda() -> None:
    pytest.importorskip("cupy", reason="CuPy is not installed")
    pytest.importorskip("kernelgrowth._cuda", reason="built without CUDA", exc_type=ImportError)


@pytest.mark.parametrize("seed", range(24))
def test_modules_drawn_at_random(seed):
    module, x = random_module(seed)
    exact = reference_kernel(module, x)
    kernel = kg.empirical_ntk(gradient_features(module.cuda(), x.cuda()))
    assert kernel.is_cuda
    assert worst_error(kernel.cpu(), exact) < 1e-8


@pytest.mark.parametrize("outputs", ["mean_trace", "sum_logits"])
def test_some_parameters_at_a_time(outputs):
    module, x = resnet18(10, width=8).cuda(), torch.randn(12, 3, 32, 32).cuda()
    whole = empirical_ntk(module, x, outputs=outputs)
    parts = empirical_ntk(module, x, outputs=outputs, memory_limit=2**26)
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))


def test_the_tracker_follows_an_optimizer():
    module: Any = CharTransformer(11, 8, 2, 1, 6).cuda()
    ids = torch.randint(0, 11, (20, 6)).cuda()
    rule = torch.optim.AdamW(module.parameters(), lr=1e-3)
    with NTKTracker(module, ids[:8], ids[:8, 0], every=2, top_k=3, optimizer=rule, outputs="trace") as tracker:
        for _ in range(5):
            loss = nn.functional.cross_entropy(module(ids), ids[:, 0])
            rule.zero_grad()
            loss.backward()
            tracker.step(loss=loss)
            rule.step()
    assert tracker.history["step"].tolist() == [0, 2, 4, 5]
    feats = gradient_features(module, ids[:8])
    rates = preconditioner(rule, module, feats, pending=False)
    kernel = kg.empirical_ntk(feats, outputs="trace", preconditioner=rates)
    np.testing.assert_allclose(tracker.history.kernel(5), kernel.cpu(), rtol=1e-3, atol=1e-6)
