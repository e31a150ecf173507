"""The paper's Figures 1a and 1b on data that need no download: whitened digits, 0 against 1."""

from __future__ import annotations

from kernelgrowth._backend.checks import check_integer
from kernelgrowth.experiments.config import DataConfig, ExperimentConfig, NetConfig, TrackingConfig, TrainingConfig

__all__ = ["demo_config"]


def demo_config(seed: int = 0, *, whiten: bool = True) -> ExperimentConfig:
    """Return the configuration of ``kernelgrowth demo``.

    A two-layer ReLU network of width 100 and initial scale σ = 0.01 learns ±1 for 240 images by full-batch gradient
    descent. Its loss ends near 1e-5 of its start: regression with the inverse of K_∞ is a fair comparison only once it
    is below 1e-4. The kernel is recorded every second step while it aligns, up to step 50, and from then on at steps
    that are each 4 % later than the one before.

    Parameters
    ----------
    seed : int
        Decides which digits are held out, and the initial parameters.
    whiten : bool
        False keeps the pixels: the alignment is then not silent.
    """
    seed = check_integer("seed", seed, minimum=0)
    return ExperimentConfig(
        data=DataConfig(name="digits", classes=(0, 1), n_train=240, n_test=120, whitening=whiten, seed=seed),
        net=NetConfig(hidden=(100,), activation="relu", sigma=0.01),
        training=TrainingConfig(loss="mse", optimizer="gd", lr=0.2, steps=4000, seed=seed, checkpoint_every=1000),
        tracking=TrackingConfig(every=2, stretch=1.04, top_k=20),
    )
