"""Data sets: synthetic teachers, whitening and partial whitening, digits, MNIST and CIFAR-10."""

from kernelgrowth.datasets.cifar10 import CIFAR10_CLASSES, cifar10
from kernelgrowth.datasets.dataset import Dataset
from kernelgrowth.datasets.digits import digits
from kernelgrowth.datasets.downloads import download
from kernelgrowth.datasets.mnist import mnist
from kernelgrowth.datasets.teachers import gaussian_teacher
from kernelgrowth.datasets.whitening import Whitening, partial_whiten, whiten

__all__ = [
    "CIFAR10_CLASSES",
    "Dataset",
    "Whitening",
    "cifar10",
    "digits",
    "download",
    "gaussian_teacher",
    "mnist",
    "partial_whiten",
    "whiten",
]
