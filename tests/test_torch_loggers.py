"""The tracker's numbers in the places where people look at them: real writers, read back."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402

import kernelgrowth as kg  # noqa: E402
import kernelgrowth.torch as kgt  # noqa: E402

pytestmark = [
    # Of what these packages do among themselves: MLflow with SQLAlchemy, Lightning with PyTorch.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    pytest.mark.filterwarnings(r"ignore:.isinstance\(treespec, LeafSpec\). is deprecated:FutureWarning"),
    # Of machines with a GPU, and with many processors.
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
    pytest.mark.filterwarnings("ignore:The .train_dataloader. does not have many workers"),
]


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
    with wandb.init(mode="offline", dir=tmp_path, project="kernels", settings=wandb.Settings(console="off")):
        history = followed(wandb.log)
    (file,) = Path(tmp_path).rglob("*.wandb")
    written = file.read_bytes()
    # The shortest decimal form, of 17 digits at most, is what the file holds.
    for alignment in history["alignment"]:
        assert repr(float(alignment)).encode() in written


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


def lightning_trainer(folder: Any, callback: Any, **options: Any) -> Any:
    import lightning.pytorch as lightning

    settings = {"accelerator": "cpu", "logger": False, "default_root_dir": folder, "log_every_n_steps": 1}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    callbacks = [] if callback is None else [callback]
    return lightning.Trainer(**(settings | quiet | {"callbacks": callbacks} | options))


@pytest.mark.parametrize("follow_optimizer", [False, True])
def test_lightning(tmp_path, follow_optimizer):
    _, module, (x, y, loader) = lightning_parts()
    from lightning.pytorch.loggers import CSVLogger

    def trainer(epochs: int, callback: Any, logger: Any = False) -> Any:
        return lightning_trainer(tmp_path, callback, max_epochs=epochs, logger=logger)

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


def test_lightning_records_the_loss_of_each_step_whatever_is_logged(tmp_path):
    _, module, (x, y, loader) = lightning_parts()

    class Quiet(module):
        losses: list[float]

        def training_step(self, batch: Any, number: int) -> Any:
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
            self.losses.append(float(loss.detach()))
            # A mean over the epoch before is no loss of a step.
            self.log("train_loss", loss, on_step=False, on_epoch=True)
            return loss

    for accumulated in (1, 3):
        followed, callback = Quiet(), kgt.LightningCallback(x[:10], y[:10], every=1)
        followed.losses = []
        trainer = lightning_trainer(tmp_path, callback, max_epochs=2, accumulate_grad_batches=accumulated)
        trainer.fit(followed, loader)
        recorded = callback.tracker.history["train_loss"]
        np.testing.assert_allclose(recorded[:-1], followed.losses[accumulated - 1 :: accumulated], rtol=1e-6)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_lightning_follows_the_optimizer_of_clipped_gradients(tmp_path, algorithm):
    _, module, (x, y, loader) = lightning_parts()
    made = []

    class Watched(module):
        def optimizer_step(self, epoch: int, number: int, optimizer: Any, closure: Any) -> None:
            feats = kgt.gradient_features(self.eval(), x[:10])
            self.train()
            super().optimizer_step(epoch, number, optimizer, closure)
            rates = kgt.preconditioner(optimizer, self, feats, pending=False)
            made.append(float(kg.empirical_ntk(feats, preconditioner=rates).norm()))

    options = {"max_epochs": 2, "gradient_clip_val": 0.01, "gradient_clip_algorithm": algorithm}
    ends = []
    for callback in (kgt.LightningCallback(x[:10], y[:10], every=1, follow_optimizer=True), None):
        watched = Watched()
        torch.manual_seed(2)
        lightning_trainer(tmp_path, callback, **options).fit(watched, loader)
        ends.append(list(watched.state_dict().values()))
        if callback is not None:
            np.testing.assert_allclose(callback.tracker.history["kernel_norm"][:-1], made, rtol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def hugging_face_parts() -> tuple[Any, Any, Any, Any]:
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

    def trainer(folder: Any, callbacks: Any = None, **options: Any) -> Any:
        settings = {"report_to": [], "save_strategy": "no", "logging_steps": 3, "lr_scheduler_type": "constant"}
        fixed = {"output_dir": str(folder), "per_device_train_batch_size": 4, "use_cpu": True, "disable_tqdm": True}
        arguments = transformers.TrainingArguments(**(settings | fixed | options))
        return transformers.Trainer(model, arguments, train_dataset=data, eval_dataset=data[:4], callbacks=callbacks)

    return transformers, trainer, probe, labels[:6]


def logged_by(trainer: Any) -> list[tuple[int, float]]:
    return [(e["step"], e["ntk/alignment"]) for e in trainer.state.log_history if "ntk/alignment" in e]


def test_hugging_face(tmp_path):
    _, make_trainer, probe, labels = hugging_face_parts()
    callback = kgt.TrainerCallback(probe, labels, every=2, top_k=2, follow_optimizer=True)
    trainer = make_trainer(tmp_path, [callback], max_steps=5)
    trainer.train()
    history = callback.tracker.history
    assert history["step"].tolist() == [0, 2, 4, 5]
    assert history.status == "completed"
    assert logged_by(trainer) == list(zip(history["step"], history["alignment"], strict=True))
    assert [e["step"] for e in trainer.state.log_history if "loss" in e] == [3]


def test_hugging_face_reports_to_tensorboard(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, make_trainer, probe, labels = hugging_face_parts()
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    callback = kgt.TrainerCallback(probe, labels, every=2, top_k=2)
    trainer = make_trainer(tmp_path, num_train_epochs=1, report_to=["tensorboard"], logging_strategy="epoch")
    callback.add_to(trainer)
    trainer.train()
    history = callback.tracker.history
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    found = events.Scalars("train/ntk/alignment")
    assert [event.step for event in found] == history["step"].tolist() == [0, 2, 4]
    np.testing.assert_allclose([event.value for event in found], history["alignment"], rtol=1e-6)
    # The trainer's own logging is not put off.
    assert [event.step for event in events.Scalars("train/loss")] == [4]


@pytest.mark.parametrize("folder", [False, True])
def test_hugging_face_resumes(tmp_path, folder):
    def run(name: str, stop: int, *, resume: bool = False) -> Any:
        transformers, make_trainer, probe, labels = hugging_face_parts()

        class Stop(transformers.TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
                control.should_training_stop |= state.global_step >= stop

        out = tmp_path / f"{name} run" if folder else None
        callback = kgt.TrainerCallback(probe, labels, every=2, top_k=2, follow_optimizer=True, out=out)
        settings = {"max_steps": 8, "save_strategy": "steps", "save_steps": 3}
        make_trainer(tmp_path / name, [callback, Stop()], **settings).train(resume_from_checkpoint=resume)
        return callback.tracker.history

    whole = run("whole", 8)
    run("parts", 4)
    resumed = run("parts", 8, resume=True)
    assert resumed["step"].tolist() == whole["step"].tolist() == [0, 2, 4, 6, 8]
    for name in set(whole) - {"seconds"}:
        np.testing.assert_array_equal(resumed[name], whole[name], err_msg=name)


def test_hugging_face_resumes_from_a_checkpoint_without_a_series(tmp_path):
    _, make_trainer, _, _ = hugging_face_parts()
    make_trainer(tmp_path, max_steps=3, save_strategy="steps", save_steps=3).train()
    _, make_trainer, probe, labels = hugging_face_parts()
    callback = kgt.TrainerCallback(probe, labels, every=2, top_k=2)
    with pytest.warns(UserWarning, match=r"kernelgrowth\.pt is missing: the series begins with step 3"):
        make_trainer(tmp_path, [callback], max_steps=5).train(resume_from_checkpoint=True)
    assert callback.tracker.history["step"].tolist() == [3, 4, 5]


@pytest.mark.parametrize(
    ("save", "patience", "last_is_known"),
    [
        # The last epoch ends before the best model is loaded; so does the saving of the one after which it stops.
        ("best", None, True),
        ("epoch", 1, True),
        # Nobody is told that this evaluation was the last before the model is another one.
        ("best", 1, False),
    ],
)
def test_hugging_face_does_not_take_the_best_model_for_the_last(tmp_path, save, patience, last_is_known):
    transformers, make_trainer, probe, labels = hugging_face_parts()
    seen = []

    class Last(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **parts: Any) -> None:
            module = model.eval()
            seen.append(float(kgt.empirical_ntk(module, probe).norm()))
            module.train()

    callback = kgt.TrainerCallback(probe, labels, every=100, top_k=2)
    callbacks = [callback, Last()] + ([transformers.EarlyStoppingCallback(patience)] if patience else [])
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": False}
    # A learning rate at which the loss rises, so that an earlier model is the best.
    options = {"num_train_epochs": 4, "learning_rate": 0.3, "eval_strategy": "epoch", "save_strategy": save}
    trainer = make_trainer(tmp_path, callbacks, **(best | options))
    trainer.train()
    steps = trainer.state.global_step
    assert not trainer.state.best_model_checkpoint.endswith(f"-{steps}")
    history = callback.tracker.history
    assert history.status == "completed"
    assert history["step"].tolist() == ([0, steps] if last_is_known else [0])
    if last_is_known:
        np.testing.assert_allclose(history["kernel_norm"][-1], seen[-1], rtol=1e-4)
