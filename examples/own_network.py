"""Follow the kernel of a network of your own, written in plain NumPy and trained by a loop of your own.

All the library asks for is every layer's inputs, and the gradients of the outputs with respect to its weighted sums.
"""

import numpy as np

import kernelgrowth as kg


class SwishNetwork:
    """f(x) = w · swish(W x) with swish(z) = z / (1 + exp(-z)), a network that the library does not have."""

    def forward(self, params, x):
        z = x @ params["W"].T
        gate = 1 / (1 + np.exp(-z))
        h, slope = z * gate, gate * (1 + z * (1 - gate))
        return h @ params["w"], h, slope * params["w"]

    def gradient_factors(self, params, x):
        f, h, df_dz = self.forward(params, x)
        blocks = {"hidden": kg.OuterProduct(x, df_dz), "output": kg.OuterProduct(h, np.ones((len(x), 1)))}
        return kg.GradientFeatures(blocks, predictions=f[:, None])


def main(steps=1000, lr=0.1):
    data = kg.datasets.gaussian_teacher(n_train=100, dim=20, whiten=True, seed=1)
    rng = np.random.default_rng(0)
    net, params = SwishNetwork(), {"W": 0.02 * rng.normal(size=(50, 20)), "w": 0.02 * rng.normal(size=50)}
    tracker = kg.NTKTracker(data.x, data.y, every=10)
    for step in range(steps + 1):
        f, h, df_dz = net.forward(params, data.x)
        residual = (f - data.y) / len(data.x)
        loss = 0.5 * np.mean((f - data.y) ** 2)
        tracker.update(net, params, step=step, time=step * lr, loss=loss, last=step == steps)
        gradient = {"W": (residual[:, None] * df_dz).T @ data.x, "w": residual @ h}
        params = {name: value - lr * gradient[name] for name, value in params.items()}
    tracker.close()
    history = tracker.history
    print(kg.silent_alignment(history).summary())
    print(f"loss {history['loss'][0]:.3g} -> {history['loss'][-1]:.3g}, alignment {history['alignment'][-1]:.2f}")


if __name__ == "__main__":
    main()
