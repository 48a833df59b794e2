"""Export a run as a folder of diffusers, which `lit-gen import` reads, too.

FOLDER/
    unet/, scheduler/, model_index.json     a DDIMPipeline, for a UNet2DModel without classes
    config.json, *.safetensors              the network alone otherwise, with scheduler_config.json beside it
    README.md                               the model card
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lit_gen.core.errors import UserError
from lit_gen.core.files import write_atomically, writing_folder
from lit_gen.experiment.experiment import Experiment
from lit_gen.experiment.exporting import describe
from lit_gen.experiment.foreign import CODEBOOK, PREDICTIONS
from lit_gen.experiment.loading import load_model, load_objects, open_finished
from lit_gen.families.base import GenerativeModel
from lit_gen.families.diffusion import Diffusion
from lit_gen.families.diffusion.chains import BetaChain, OnChain, Timesteps
from lit_gen.families.diffusion.denoisers import Epsilon, Parameterization
from lit_gen.families.diffusion.networks.foreign import import_diffusers
from lit_gen.families.diffusion.networks.to_diffusers import to_diffusers
from lit_gen.families.diffusion.schedules import DiscreteVP
from lit_gen.families.vae.foreign import DiffusersAutoencoder
from lit_gen.families.vae.kl_autoencoder import KLAutoencoder
from lit_gen.families.vq.models.vqgan import VQVAE
from lit_gen.runs.directory import Run
from lit_gen.runs.exported import CARD

Card = Callable[[Run, dict[str, Any], bool], str]


def export_to_diffusers(directory: Path, folder: Path, weights: str, card: Card) -> Path:
    """Write the model of a finished run to a new folder of diffusers, whole or not at all, and return the folder.

    Args:
        directory: The run.
        folder: The folder; it must not exist, or be empty.
        weights: `ema`, `raw`, `best`, or a power-function average such as `ema:0.1`.
        card: Makes the model card from the run, the facts about it, and whether the folder is a pipeline.

    Raises:
        UserError: If it is not a finished run, lacks the weights, or diffusers is not installed or has no such model,
            or the folder cannot be written.
    """
    diffusers = import_diffusers()
    run = open_finished(directory, "RUN")
    objects = load_objects(run)
    model = load_model(run, objects.model, weights)
    saved = _parts(diffusers, model, objects)
    with writing_folder(folder) as place:
        for part in saved:
            part.save_pretrained(place, safe_serialization=True)
        is_pipeline = (place / "model_index.json").is_file()
        write_atomically(place / CARD, card(run, describe(run, objects, model, weights), is_pipeline))
    return folder


def _parts(diffusers: Any, model: GenerativeModel, objects: Experiment) -> list[Any]:
    """Return what is saved into the folder: an autoencoder, a pipeline, or a network and its scheduler."""
    if isinstance(model, KLAutoencoder | VQVAE) and isinstance(model.autoencoder.network, DiffusersAutoencoder):
        return [_autoencoder(diffusers, model)]
    if objects.stage is not None or not isinstance(model, Diffusion):
        raise UserError(
            f"--format: {model.title} is not a diffusion model of pixels nor an autoencoder of diffusers; leave "
            "--format out"
        )
    scheduler = diffusers.DDIMScheduler(**_scheduler(model, objects))
    network = to_diffusers(model.generator, model.image_shape)
    if isinstance(network, diffusers.UNet2DModel) and not network.config.num_class_embeds:
        return [diffusers.DDIMPipeline(network, scheduler)]
    return [network, scheduler]


def _scheduler(model: Diffusion, objects: Experiment) -> dict[str, Any]:
    """Return the settings of the DDIMScheduler of a model.

    Raises:
        UserError: If the model has no chain of timesteps, or learns the variance of its steps.
    """
    schedule, own = model.schedule, model.denoiser.parameterization
    if (
        not isinstance(schedule, DiscreteVP)
        or not isinstance(own, OnChain | Epsilon)
        or own.num_timesteps != schedule.num_timesteps
        or model.learns_variance
    ):
        raise UserError(
            f"--format: {model.title} is not trained on a chain of timesteps with a fixed variance, as the "
            "schedulers of diffusers are; leave --format out"
        )
    grid = getattr(objects.sampler, "grid", None)
    spacing = {"timestep_spacing": grid.spacing, "steps_offset": grid.offset} if isinstance(grid, Timesteps) else {}
    clip = model.denoiser.clip
    return {
        "num_train_timesteps": schedule.num_timesteps,
        "prediction_type": _prediction_type(own.prediction if isinstance(own, OnChain) else own),
        "clip_sample": clip is not None,
        "clip_sample_range": 1.0 if clip is None else clip,
        **_betas(schedule),
        **spacing,
    }


def _prediction_type(prediction: Parameterization) -> str:
    types = {of_ours: of_theirs for of_theirs, of_ours in PREDICTIONS.items()}
    name = type(prediction).__name__
    if name not in types:
        raise UserError(f"--format: diffusers has no prediction type for {name}; leave --format out")
    return types[name]


def _betas(schedule: DiscreteVP) -> dict[str, Any]:
    if isinstance(schedule, BetaChain):
        named = isinstance(schedule.betas, str)
        return {
            "beta_schedule": schedule.betas if named else "linear",
            "trained_betas": None if named else list(schedule.betas),
            "beta_start": schedule.beta_start,
            "beta_end": schedule.beta_end,
            "rescale_betas_zero_snr": schedule.zero_terminal_snr,
        }
    if schedule.betas == "cosine":
        return {"beta_schedule": "squaredcos_cap_v2"}
    num = schedule.num_timesteps
    if 0.02 * 1000 / num < 1:
        return {"beta_schedule": "linear", "beta_start": 1e-4 * 1000 / num, "beta_end": 0.02 * 1000 / num}
    decay, _ = schedule.decay(torch.arange(num + 1) / num)  # a chain this short has clamped betas, which have no name
    return {"trained_betas": (-torch.expm1(-decay.diff())).tolist()}


def _autoencoder(diffusers: Any, model: KLAutoencoder | VQVAE) -> Any:
    """Return an autoencoder of diffusers with the codes of a VQVAE."""
    network = model.autoencoder.network
    assert isinstance(network, DiffusersAutoencoder)
    if not isinstance(model, VQVAE):
        return network.model
    whole = diffusers.VQModel(**{key: value for key, value in network.model.config.items() if not key.startswith("_")})
    weights, quantiser = whole.state_dict(), model.autoencoder.quantiser
    codes = quantiser.state_dict().get("codes")
    if getattr(quantiser, "similarity", None) != "euclidean" or codes is None or codes.shape != weights[CODEBOOK].shape:
        raise UserError(
            "--format: this quantiser does not agree with that of VQModel, Euclidean codes as many and as wide as "
            "num_vq_embeddings and the latents; leave --format out"
        )
    whole.load_state_dict(network.model.state_dict() | {CODEBOOK: codes})
    return whole
