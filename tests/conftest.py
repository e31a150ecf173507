from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from gpu import Gpu, find_gpu

# Examples differ in cost by orders of magnitude, and CI machines in speed: a deadline would only measure noise. In CI a
# change is judged by the same examples as the change before it; everywhere else new ones are drawn.
settings.register_profile(
    "kernelgrowth",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    # One GPU, or its stand-in, serves all examples of a test.
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("kernelgrowth")


@pytest.fixture(autouse=True, scope="session")
def _no_forced_settings():
    """What a user's shell may force must not decide what the tests test."""
    for name in ("KERNELGROWTH_ISA", "KERNELGROWTH_NUM_THREADS"):
        os.environ.pop(name, None)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """What tests of CuPy arrays run on: the machine's GPU, or a stand-in for CuPy over the CPU's core."""
    compiled = pytest.importorskip("kernelgrowth._cuda", reason="built without CUDA", exc_type=ImportError)
    return find_gpu(monkeypatch, compiled)
