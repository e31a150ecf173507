"""The kernels of PyTorch's optimizers, against the updates that they make."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402

import kernelgrowth as kg  # noqa: E402
from kernelgrowth.torch import gradient_features, learning_rates, preconditioner  # noqa: E402


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(2, 5, batch_first=True)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Any) -> Any:
        return self.head(self.gru(x.unflatten(1, (3, 2)))[0][:, -1])


OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "adam": lambda p, lr: torch.optim.Adam(p, lr, betas=(0.0, 0.99)),
    "amsgrad": lambda p, lr: torch.optim.Adam(p, lr, betas=(0.0, 0.99), amsgrad=True),
    "adamw": lambda p, lr: torch.optim.AdamW(p, lr, betas=(0.0, 0.99), weight_decay=0.0),
    "rmsprop": torch.optim.RMSprop,
    "centered rmsprop": lambda p, lr: torch.optim.RMSprop(p, lr, centered=True),
}
ARCHITECTURES = {
    "dense": lambda: nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 2)),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.GELU(), nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 2)
    ),
    "recurrent": Recurrent,
}


def prepared(architecture: str, optimizer: str, scale: float, warm_up: int = 5) -> tuple[Any, Any, Any, Any]:
    """A module in the middle of its training, with gradients, and an optimizer whose next step is `scale` as long."""
    torch.manual_seed(0)
    module = ARCHITECTURES[architecture]().double()
    x, y = torch.randn(12, 6, dtype=torch.float64), torch.randn(12, 2, dtype=torch.float64)
    rule = OPTIMIZERS[optimizer](module.parameters(), 0.003)
    for step in range(warm_up + 1):
        rule.zero_grad()
        # Sums, so that the loss's derivative by the outputs is f − y.
        (0.5 * (module(x) - y) ** 2).sum().backward()
        if step < warm_up:
            rule.step()
    for group in rule.param_groups:
        group["lr"] *= scale
    return module, rule, x, y


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_update_to_first_order(architecture, optimizer):
    errors, plain = [], []
    for scale in (1.0, 0.5):
        module, rule, x, y = prepared(architecture, optimizer, scale)
        feats = gradient_features(module, x)
        kernel = kg.empirical_ntk(feats, preconditioner=preconditioner(rule, module, feats))
        unweighted = kg.empirical_ntk(feats)
        before = module(x).detach()
        rule.step()
        change = module(x).detach() - before
        residual = before - y
        predicted = -torch.einsum("nmce,me->nc", kernel, residual)
        errors.append(float((change - predicted).norm() / change.norm()))
        direction = torch.einsum("nmce,me->nc", unweighted, residual)
        best = direction * (direction * change).sum() / (direction**2).sum()
        plain.append(float((change - best).norm() / change.norm()))
    # The error relative to a change that halves: it falls by two, the error itself by four.
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=0.2)
    if optimizer != "sgd":
        assert errors[1] < 0.5 * plain[1]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_of_the_update_before_and_the_one_pending_agree(optimizer):
    _, rule, _, _ = prepared("dense", optimizer, 1.0)
    pending = learning_rates(rule)
    rule.step()
    made = learning_rates(rule, pending=False)
    assert pending.keys() == made.keys()
    for key, rates in pending.items():
        torch.testing.assert_close(rates, made[key])


def test_weight_decay_counts_where_the_optimizer_adds_it_to_the_gradient():
    p = nn.Parameter(torch.tensor([2.0, -1.0]))
    p.grad = torch.tensor([0.5, 0.25])
    for kind, decayed in ((torch.optim.Adam, True), (torch.optim.AdamW, False), (torch.optim.RMSprop, True)):
        rule = kind([p], lr=0.1, weight_decay=0.3)
        (rates,) = learning_rates(rule).values()
        gradient = p.grad + (0.3 * p.detach() if decayed else 0.0)
        size = gradient.abs() * (0.1 if kind is torch.optim.RMSprop else 1.0)
        torch.testing.assert_close(rates, 0.1 / (size + 1e-8))


def test_groups_and_parameters_that_are_not_held():
    module = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2), nn.Linear(2, 1))
    rule = torch.optim.SGD([{"params": module[0].parameters(), "lr": 0.5}, {"params": module[2].parameters()}], lr=0.25)
    x = torch.randn(5, 6)
    module(x).sum().backward()
    feats = gradient_features(module, x)
    found = preconditioner(rule, module, feats)
    assert torch.equal(found["0"][0], torch.full((4, 6), 0.5))
    assert torch.equal(found["2"][1], torch.full((2,), 0.25))
    assert not found["3"][0].any()
    layers = kg.empirical_ntk(feats, per_layer=True)
    kernel = kg.empirical_ntk(feats, preconditioner=found)
    torch.testing.assert_close(kernel, 0.5 * layers["0"] + 0.25 * layers["2"])


def test_wrapped_optimizers_are_unwrapped():
    class Wrapper:
        def __init__(self, optimizer: Any) -> None:
            self.optimizer = optimizer

    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    rates = learning_rates(Wrapper(torch.optim.SGD([p], lr=torch.tensor(0.5))))
    assert torch.equal(rates[id(p)], torch.full((2,), 0.5))

    # As Lightning's are: of a class derived from the optimizer's, whose own state may be an old one.
    class Derived(torch.optim.SGD):
        def __init__(self, optimizer: Any) -> None:
            super().__init__([p], lr=7.0)
            self.optimizer = optimizer

    rates = learning_rates(Derived(torch.optim.SGD([p], lr=0.25)))
    assert torch.equal(rates[id(p)], torch.full((2,), 0.25))


def test_refusals():
    p = nn.Parameter(torch.ones(2))
    with pytest.raises(TypeError, match="optimizer must be one of SGD, Adam, AdamW, RMSprop, got Adagrad"):
        learning_rates(torch.optim.Adagrad([p]))
    with pytest.raises(ValueError, match=r"no parameter of optimizer has a gradient: call this after loss\.backward"):
        learning_rates(torch.optim.Adam([p]))
    with pytest.raises(ValueError, match="has made no update yet"):
        learning_rates(torch.optim.Adam([p]), pending=False)
    p.grad = torch.ones(2)
    with pytest.raises(ValueError, match="optimizer maximises"):
        learning_rates(torch.optim.Adam([p], maximize=True))
    with pytest.raises(TypeError, match="feats must be what gradient_features of a module returned"):
        preconditioner(torch.optim.Adam([p]), nn.Linear(1, 1), {})
    module = nn.Linear(2, 1)
    feats = gradient_features(module, torch.ones(3, 2))
    with pytest.raises(ValueError, match="optimizer updates no parameter of module"):
        preconditioner(torch.optim.Adam([p]), module, feats)
