"""Networks: forward, backward, initialisation and parameterisation, on NumPy or CuPy arrays."""

from kernelgrowth.nets.activations import ACTIVATIONS
from kernelgrowth.nets.factors import DenseFactors, GradientFactors
from kernelgrowth.nets.mlp import MLP, from_config
from kernelgrowth.nets.network import Network
from kernelgrowth.nets.parameterizations import PARAMETERIZATIONS

__all__ = ["ACTIVATIONS", "MLP", "PARAMETERIZATIONS", "DenseFactors", "GradientFactors", "Network", "from_config"]
