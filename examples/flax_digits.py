"""Follow the kernel of a Flax network that is trained on handwritten digits by an Optax loop.

python examples/flax_digits.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import kernelgrowth as kg


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x))
        return nn.Dense(10)(nn.relu(nn.Dense(32)(x.reshape(len(x), -1))))


def main(steps=200, every=40):
    bunch = load_digits()
    x, y = jnp.asarray(bunch.images[..., None], jnp.float32) / 16, jnp.asarray(bunch.target)
    model = Net()
    params = model.init(jax.random.PRNGKey(0), x[:1])
    rule = optax.adam(1e-3)
    state = rule.init(params)

    def loss_of(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, x), y).mean()

    @jax.jit
    def update(params, state, x, y):
        loss, gradient = jax.value_and_grad(loss_of)(params, x, y)
        change, state = rule.update(gradient, state, params)
        return optax.apply_updates(params, change), state, loss

    probe, targets = x[:100], np.eye(10)[np.asarray(y[:100])] - 0.1
    rng, first = np.random.default_rng(0), None
    print("step   loss  |K|      alignment  rotation  top eigenvalues")
    for step in range(steps + 1):
        batch = rng.integers(0, len(x), 128)
        if step % every == 0:
            feats = kg.jax.gradient_features(model.apply, params, probe)
            kernel = np.asarray(kg.empirical_ntk(feats, outputs="mean_trace"))
            first = kernel if first is None else first
            top = kg.eigsh(kernel, 3).eigenvalues
            print(
                f"{step:4d}  {loss_of(params, probe, y[:100]):6.3f}  {np.linalg.norm(kernel):7.3g}"
                f"  {kg.kernel_target_alignment(kernel, targets):9.3f}  {kg.kernel_distance(kernel, first):8.3f}"
                f"  {' '.join(f'{value:.3g}' for value in top)}"
            )
        params, state, _ = update(params, state, x[batch], y[batch])


if __name__ == "__main__":
    main()
