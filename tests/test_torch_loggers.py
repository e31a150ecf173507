"""The tracker's numbers in the places where people look at them: real writers, read back."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402

import kernelgrowth.torch as kgt  # noqa: E402

# What these packages warn of on import and in use is theirs.
pytestmark = pytest.mark.filterwarnings("default")


def followed(log: Any, steps: int = 5) -> Any:
    torch.manual_seed(0)
    module, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)), torch.randn(12, 4)
    rule = torch.optim.SGD(module.parameters(), lr=0.1)
    tracker = kgt.NTKTracker(module, x, x[:, :1], every=2, top_k=2, log=log)
    for _ in range(steps):
        loss = ((module(x) - x[:, :1]) ** 2).mean()
        rule.zero_grad()
        loss.backward()
        tracker.step(loss=loss)
        rule.step()
    tracker.close()
    return tracker.history


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        history = followed(kgt.loggers.tensorboard(writer))
    events = EventAccumulator(str(tmp_path)).Reload()
    for name, series in (("ntk/alignment", history["alignment"]), ("ntk/eigenvalues/1", history["eigenvalues"][:, 1])):
        scalars = events.Scalars(name)
        assert [event.step for event in scalars] == [0, 2, 4, 5]
        np.testing.assert_allclose([event.value for event in scalars], series, rtol=1e-6)


def test_mlflow(tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed")
    before = mlflow.get_tracking_uri()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    try:
        mlflow.set_tracking_uri(uri)
        experiment = mlflow.create_experiment("kernels", artifact_location=str(tmp_path / "artifacts"))
        with mlflow.start_run(experiment_id=experiment) as run:
            history = followed(mlflow.log_metrics)
        metrics = mlflow.MlflowClient(uri).get_metric_history(run.info.run_id, "ntk/layers/0/norm")
    finally:
        mlflow.set_tracking_uri(before)
    assert [metric.step for metric in metrics] == [0, 2, 4, 5]
    np.testing.assert_allclose([metric.value for metric in metrics], history["layers/0/norm"])


def test_wandb(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="Weights & Biases is not installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged = []
    run = wandb.init(mode="disabled", dir=tmp_path)
    monkeypatch.setattr(run, "log", lambda values, step=None: logged.append((step, values)))
    followed(run.log)
    run.finish()
    assert [step for step, _ in logged] == [0, 2, 4, 5]


def lightning_parts() -> tuple[Any, Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.1), nn.Tanh(), nn.Linear(6, 3))

        def forward(self, x: Any) -> Any:
            return self.net(x)

        def training_step(self, batch: Any, _: int) -> Any:
            x, y = batch
            loss = nn.functional.cross_entropy(self(x), y)
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.01)

    torch.manual_seed(1)
    x, y = torch.randn(24, 4), torch.randint(0, 3, (24,))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)
    return lightning, Module, (x, y, loader)


@pytest.mark.parametrize("follow_optimizer", [False, True])
def test_lightning(tmp_path, follow_optimizer):
    lightning, module, (x, y, loader) = lightning_parts()
    from lightning.pytorch.loggers import CSVLogger

    def trainer(epochs: int, callback: Any, logger: Any = False) -> Any:
        return lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=[callback],
            logger=logger,
            default_root_dir=tmp_path,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
        )

    def callback() -> Any:
        return kgt.LightningCallback(x[:10], y[:10], every=2, top_k=2, follow_optimizer=follow_optimizer)

    followed, logger = callback(), CSVLogger(tmp_path)
    run = trainer(3, followed, logger)
    run.fit(module(), loader)
    history = followed.tracker.history
    assert history["step"].tolist() == [0, 2, 4, 6, 8, 9]
    assert history.status == "completed"
    logger.save()
    table = np.genfromtxt(f"{logger.log_dir}/metrics.csv", delimiter=",", names=True, deletechars="", dtype=None)
    logged = table["ntk/alignment"]
    np.testing.assert_allclose(logged[~np.isnan(logged)], history["alignment"], rtol=1e-6)

    first = trainer(2, callback())
    first.fit(module(), loader)
    first.save_checkpoint(tmp_path / "half.ckpt")
    resumed = callback()
    trainer(3, resumed).fit(module(), loader, ckpt_path=tmp_path / "half.ckpt")
    assert resumed.tracker.history["step"].tolist() == [0, 2, 4, 6, 8, 9]


def test_hugging_face(tmp_path):
    transformers = pytest.importorskip("transformers", reason="Transformers is not installed")
    pytest.importorskip("accelerate", reason="Accelerate is not installed")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3
    )
    model = transformers.BertForSequenceClassification(config)
    ids, labels = torch.randint(0, 20, (16, 6)), torch.randint(0, 3, (16,))
    data = [
        {"input_ids": i, "attention_mask": torch.ones_like(i), "labels": label}
        for i, label in zip(ids, labels, strict=True)
    ]
    probe = {"input_ids": ids[:6], "attention_mask": torch.ones_like(ids[:6])}
    callback = kgt.TrainerCallback(probe, labels[:6], every=2, top_k=2, follow_optimizer=True)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        max_steps=5,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_steps=100,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=[callback])
    trainer.train()
    history = callback.tracker.history
    assert history["step"].tolist() == [0, 2, 4, 5]
    assert history.status == "completed"
    logged = [entry["ntk/alignment"] for entry in trainer.state.log_history if "ntk/alignment" in entry]
    np.testing.assert_allclose(logged[:3], history["alignment"][:3])
