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

__all__ = [
    "ConfigError",
    "DataConfig",
    "ExperimentConfig",
    "ExperimentResult",
    "FolderTakenError",
    "NetConfig",
    "OutputConfig",
    "Progress",
    "TrackingConfig",
    "TrainingConfig",
    "demo_config",
    "load_config",
    "parse_config",
    "report_run",
    "run_experiment",
    "stored_config",
]
