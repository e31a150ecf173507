"""Experiments: from a configuration to a trained network, its followed kernel, and a report."""

from kernelgrowth.experiments.config import (
    ConfigError,
    DataConfig,
    ExperimentConfig,
    NetConfig,
    OutputConfig,
    TrackingConfig,
    TrainingConfig,
    load_config,
    parse_config,
)
from kernelgrowth.experiments.demo import demo_config
from kernelgrowth.experiments.run import (
    ExperimentResult,
    FolderTakenError,
    Progress,
    report_run,
    run_experiment,
    stored_config,
)
from kernelgrowth.experiments.sweep_config import SweepConfig, SweepRun, load_sweep, parse_sweep
from kernelgrowth.experiments.sweep_experiments import SweepProgress, SweepResult, sweep_experiments

__all__ = [
    "ConfigError",
    "DataConfig",
    "ExperimentConfig",
    "ExperimentResult",
    "FolderTakenError",
    "NetConfig",
    "OutputConfig",
    "Progress",
    "SweepConfig",
    "SweepProgress",
    "SweepResult",
    "SweepRun",
    "TrackingConfig",
    "TrainingConfig",
    "demo_config",
    "load_config",
    "load_sweep",
    "parse_config",
    "parse_sweep",
    "report_run",
    "run_experiment",
    "stored_config",
    "sweep_experiments",
]
