"""The identity of a training run: a hash of everything that changes its weights, and of nothing else."""

import hashlib
import json
from typing import Any

from lit_gen.experiment import names
from lit_gen.training import processes

# A Trainer argument that is not named here is taken to change the weights.
TRAINER_KEYS_THAT_CHANGE_NO_WEIGHT = {
    *("accelerator", "strategy", "logger", "log_every_n_steps", "enable_checkpointing"),
    *("enable_progress_bar", "enable_model_summary", "default_root_dir", "profiler", "barebones"),
    *("num_sanity_val_steps", "val_check_interval", "check_val_every_n_epoch", "limit_val_batches"),
    *("limit_test_batches", "limit_predict_batches", "enable_autolog_hparams", "model_registry", "inference_mode"),
    *("use_distributed_sampler", "detect_anomaly"),
}
# The source's path and options change a weight only through the images, and those are in the fingerprint.
DATA_KEYS_THAT_CHANGE_NO_WEIGHT = {"source", "num_workers"}


def training_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a resolved configuration that changes the weights, and nothing else."""
    data = {key: value for key, value in config["data"].items() if key not in DATA_KEYS_THAT_CHANGE_NO_WEIGHT}
    trainer = {key: value for key, value in config["trainer"].items() if key not in TRAINER_KEYS_THAT_CHANGE_NO_WEIGHT}
    trainer["devices"] = _num_devices(config["trainer"])
    keys = ("seed_everything", "model", "budget", "ema")
    training = {key: config[key] for key in keys} | {"data": data, "trainer": trainer}
    if config["reflow"]["teacher"] is not None:  # the fingerprint of its pairs identifies the teacher
        training["reflow"] = {key: value for key, value in config["reflow"].items() if key in ("weights", "start")}
    return training


def training_identity(config: dict[str, Any], fingerprint: str) -> str:
    """Return a hash of everything that changes the weights: the training configuration and the training images."""
    plain = json.dumps([names.first(training_config(config)), fingerprint], sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()


def _num_devices(trainer: dict[str, Any]) -> int | str:
    """Return the number of devices: each process draws its own random numbers, so it changes the weights."""
    devices: int | str = processes.num_devices(trainer["devices"], trainer["accelerator"])
    return int(devices) if str(devices).isdigit() else devices


def recipe_identity(config: dict[str, Any], fingerprint: str) -> str:
    """Return an identity that is the same for every seed: runs that share it repeat one training run."""
    return training_identity(config | {"seed_everything": None}, fingerprint)
