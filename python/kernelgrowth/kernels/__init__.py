"""The empirical neural tangent kernel as an array, as an operator, and the plan by which it is computed."""

from kernelgrowth.kernels.ntk import OUTPUTS, empirical_ntk
from kernelgrowth.kernels.operator import NTKOperator
from kernelgrowth.kernels.plan import BlockPlan, Plan
from kernelgrowth.kernels.products import ProductBlockPlan, ProductPlan
from kernelgrowth.kernels.stacks import FeatureStack, stack

__all__ = [
    "OUTPUTS",
    "BlockPlan",
    "FeatureStack",
    "NTKOperator",
    "Plan",
    "ProductBlockPlan",
    "ProductPlan",
    "empirical_ntk",
    "stack",
]
