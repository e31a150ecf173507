"""Following a kernel through training, and the run folder in which it is kept."""

from kernelgrowth.tracking.history import History, load_run
from kernelgrowth.tracking.runs import Runs, load_runs
from kernelgrowth.tracking.tracker import NTKTracker

__all__ = ["History", "NTKTracker", "Runs", "load_run", "load_runs"]
