"""Following a kernel through training, and the run folder in which it is kept."""

from kernelgrowth.tracking.history import History, load_run
from kernelgrowth.tracking.tracker import NTKTracker

__all__ = ["History", "NTKTracker", "load_run"]
