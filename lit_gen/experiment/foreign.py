"""Import foreign models: folders of diffusers, and functions of the user's own.

A folder of diffusers holds a network and the settings of its scheduler:

    PIPELINE/unet/ or transformer/    config.json, diffusion_pytorch_model.safetensors
    PIPELINE/scheduler/               scheduler_config.json

The folder of a network alone also has the file scheduler_config.json, or the folder scheduler. The betas become a
`BetaChain`, and the prediction type a parameterization of the same timesteps (`OnChain`).

The folder of an autoencoder, such as PIPELINE/vae/, needs no scheduler, and becomes the run of a first stage:
`KLAutoencoder`, or `VQVAE` with the codebook of the folder.
"""

import hashlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_gen.core.errors import UserError
from lit_gen.core.records import read_record
from lit_gen.data.module import ImageDataModule
from lit_gen.experiment.arguments import normalise_arguments
from lit_gen.experiment.experiment import Experiment
from lit_gen.experiment.importing import check_fixed, write_run
from lit_gen.experiment.loading import configured
from lit_gen.experiment.parser import ExperimentCLI
from lit_gen.experiment.real_data import parse_real_data
from lit_gen.families.base import GenerativeModel
from lit_gen.families.diffusion.chains import BETAS
from lit_gen.families.diffusion.networks.foreign import (
    KINDS,
    DiffusersNetwork,
    FunctionNetwork,
    check_images,
    import_diffusers,
    null_class,
    num_embedded,
)
from lit_gen.families.vae.foreign import (
    AUTOENCODERS,
    DiffusersAutoencoder,
    check_autoencoder,
    num_latent_channels,
)
from lit_gen.families.vae.kl_autoencoder import KLAutoencoder
from lit_gen.families.vq.models.vqgan import VQVAE
from lit_gen.runs.directory import Run
from lit_gen.runs.exported import load_tensors

CONFIG = "config.json"
SCHEDULER = "scheduler_config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
REMEDY = "restore the file"
PREDICTIONS = {"epsilon": "Epsilon", "v_prediction": "V", "sample": "Sample"}
"""Parameterization of each prediction type."""
CLIPPING = ("DDPMScheduler", "DDIMScheduler", "DDIMParallelScheduler", "DDPMParallelScheduler")
"""Schedulers that clip the prediction of x_0 unless their settings say otherwise."""
CODEBOOK = "quantize.embedding.weight"
"""Name of the codes among the weights of a VQModel."""
_DIFFUSION, _VAE, _VQ = "lit_gen.families.diffusion", "lit_gen.families.vae", "lit_gen.families.vq"


def is_of_diffusers(folder: Path) -> bool:
    """Return whether a folder holds a model or a pipeline of diffusers."""
    return (folder / "model_index.json").is_file() or (folder / CONFIG).is_file()


def import_folder(folder: Path, words: Sequence[str], images_seen: int = 0) -> Run:
    """Make a run of a folder of diffusers.

    Args:
        folder: The folder of a pipeline, or of a network with the settings of its scheduler.
        words: Keys of the data, the evaluation, the run and the machine.
        images_seen: Number of images that the network was trained on; 0 if unknown.

    Raises:
        UserError: If diffusers is not installed, a file is missing, damaged or of a kind that is not supported, or the
            network is not one for the images of the data.
    """
    import_diffusers()
    check_fixed(words, str(folder))
    place = _network_of(folder)
    settings = _read(place / CONFIG)
    kind, version = settings.get("_class_name"), settings.get("_diffusers_version")
    if kind not in (*KINDS, *AUTOENCODERS):
        supported = ", ".join((*KINDS, *AUTOENCODERS))
        raise UserError(f"PATH: {place / CONFIG}: the class {kind} is not supported; choose one of {supported}")
    settings = {key: value for key, value in settings.items() if not key.startswith("_")}
    data = parse_real_data([word for word in normalise_arguments(words) if word.startswith("--data.")], "import").data
    config = _configuration(kind, settings, data, folder, place)
    weights = _weights_of(place)
    with configured(config) as own:
        cli = ExperimentCLI([*own, *words], "import")
        experiment = cli.objects()
    _load(experiment.model, weights, place)
    versions = {"_diffusers_version": version} if isinstance(version, str) else {}
    return _written(cli, experiment, folder.resolve().name, {"from": f"diffusers {kind}"} | versions, images_seen)


def _configuration(
    kind: str, settings: dict[str, Any], data: ImageDataModule, folder: Path, place: Path
) -> dict[str, Any]:
    """Return the configuration of the run of a network."""
    where = f"PATH: {place / CONFIG}"
    if kind in AUTOENCODERS:
        check_autoencoder(settings, data.image_shape, where)
        return {"model": _autoencoder(kind, settings)}
    scheduler = _read(_scheduler_of(folder, place))
    check_images(kind, settings, data.image_shape, where)
    classes = _classes(kind, settings, data.num_classes, where)
    return {"model": _model(kind, settings, scheduler, classes, place), "sampler": _sampler(scheduler)}


def _autoencoder(kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of a first stage."""
    network = {"class_path": f"{_VAE}.DiffusersAutoencoder", "init_args": {"kind": kind, "settings": settings}}
    made = {"latent_dim": num_latent_channels(kind, settings), "network": network}
    if kind == "AutoencoderKL":
        return {"class_path": f"{_VAE}.KLAutoencoder", "init_args": made}
    codebook = {"num_codes": settings.get("num_vq_embeddings", 256), "ema": False}
    quantiser = {"class_path": f"{_VQ}.VectorQuantiser", "init_args": codebook}
    return {"class_path": f"{_VQ}.VQVAE", "init_args": made | {"quantiser": quantiser}}


def import_function(name: str, words: Sequence[str], images_seen: int = 0) -> Run:
    """Make a run of a function of the user's own, which stays in its module: the run does not hold its weights.

    Args:
        name: Import path of the function, which is annotated to return a torch.Tensor.
        words: Keys with at least model.schedule, model.parameterization and data.source.
        images_seen: Number of images that it was trained on; 0 if unknown.

    Raises:
        UserError: If the function does not exist, or a key is missing.
    """
    own = [
        f"--model={_DIFFUSION}.Diffusion",
        f"--model.network={_DIFFUSION}.FunctionNetwork",
        f"--model.network.function={name}",
    ]
    if not any(word.startswith("--model.density") for word in words):
        own.append(f"--model.density={_DIFFUSION}.UniformTime")
    for key in ("schedule", "parameterization"):
        if not any(word.partition("=")[0] == f"--model.{key}" for word in words):
            raise UserError(f"model.{key}: missing; name the one that {name} was trained with, as --model.{key} CLASS")
    cli = ExperimentCLI([*own, *words], "import")
    experiment = cli.objects()
    network = experiment.model.generator
    assert isinstance(network, FunctionNetwork)
    file = inspect.getsourcefile(network.function)
    source = {} if file is None else {"source_sha256": hashlib.sha256(Path(file).read_bytes()).hexdigest()}
    return _written(cli, experiment, name, {"from": name} | source, images_seen)


def _written(cli: ExperimentCLI, experiment: Experiment, title: str, imported: dict[str, Any], images_seen: int) -> Run:
    data = experiment.data
    facts = {"fingerprint": data.fingerprint("train")} | data.describe().to_dict()
    return write_run(cli, experiment, facts, imported, images_seen, title)


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_record(path, REMEDY)
    except FileNotFoundError:
        raise UserError(f"PATH: {path}: not found; {REMEDY}") from None


def _network_of(folder: Path) -> Path:
    """Return the folder of the network in the folder of a model or a pipeline."""
    if not (folder / "model_index.json").is_file():
        return folder
    for part in ("vae", "vqvae", "movq"):
        if (folder / part).is_dir():
            raise UserError(
                f"PATH: {folder}: a pipeline of latents is not supported; choose one of pixels, or import "
                f"{folder / part} alone as a first stage"
            )
    for part in ("unet", "transformer"):
        if (folder / part).is_dir():
            return folder / part
    raise UserError(f"PATH: {folder}: the pipeline has neither unet nor transformer; name a folder that has one")


def _scheduler_of(folder: Path, place: Path) -> Path:
    """Return the file with the settings of the scheduler."""
    places = [
        place / SCHEDULER,
        folder / "scheduler" / SCHEDULER,
        folder / SCHEDULER,
        place.parent / "scheduler" / SCHEDULER,
    ]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise UserError(
            f"PATH: {folder}: {SCHEDULER} is missing, which holds betas and prediction type; copy it from the "
            "scheduler folder of the pipeline"
        )
    return found


def _weights_of(place: Path) -> dict[str, Tensor]:
    """Load the weights of a network; raise a UserError unless they are one safetensors file."""
    path = place / WEIGHTS
    if not path.is_file():
        if (place / f"{WEIGHTS}.index.json").is_file():
            raise UserError(f"PATH: {place}: the weights are in several files; save them again with one shard")
        pickles = sorted(each.name for each in place.glob("*.bin"))
        what = f"{pickles[0]} is a pickle, which may run code" if pickles else f"{WEIGHTS} is missing"
        raise UserError(f"PATH: {place}: {what}; save the model again with safe_serialization=True")
    return load_tensors(path)


def _load(model: GenerativeModel, weights: dict[str, Tensor], place: Path) -> None:
    """Load the weights of a network of diffusers, and of the codebook of a VQModel."""
    network = model.autoencoder.network if isinstance(model, VQVAE | KLAutoencoder) else model.generator
    assert isinstance(network, DiffusersNetwork | DiffusersAutoencoder)
    weights = {name: weight.float() for name, weight in weights.items()}
    try:
        if isinstance(model, VQVAE):
            quantiser = model.autoencoder.quantiser
            quantiser.load_state_dict(quantiser.state_dict() | {"codes": weights.pop(CODEBOOK)})
        network.model.load_state_dict(weights)
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"PATH: {place / WEIGHTS}: does not fit {CONFIG} ({reason}); restore both files") from None


def _classes(kind: str, settings: dict[str, Any], num_classes: int, where: str) -> dict[str, Any]:
    """Return the settings of a model about classes; it samples without a class if the network has a row for that."""
    embedded = num_embedded(kind, settings)
    if not embedded or not num_classes:
        if embedded and null_class(kind, settings, 0) is None:
            raise UserError(f"{where}: the network embeds {embedded} classes, but the data has none; choose other data")
        return {}
    allowed = (num_classes,) if kind == "DiTTransformer2DModel" else (num_classes, num_classes + 1)
    if embedded not in allowed:
        raise UserError(
            f"{where}: the network embeds {embedded} classes, but the data has {num_classes}; choose other data"
        )
    free = null_class(kind, settings, num_classes) is not None
    return {"class_conditional": True, "label_drop": 0.1 if free else 0.0}


def _model(kind: str, settings: dict[str, Any], scheduler: dict[str, Any], classes: dict[str, Any], place: Path) -> Any:
    """Return the configuration of the model."""
    name, prediction = str(scheduler.get("_class_name")), scheduler.get("prediction_type", "epsilon")
    betas, trained = scheduler.get("beta_schedule"), scheduler.get("trained_betas")
    where = f"PATH: {SCHEDULER} of {place}"
    if betas not in BETAS and trained is None:
        raise UserError(
            f"{where}: {name} with beta_schedule {betas} is not supported; choose one of {', '.join(BETAS)}"
        )
    if prediction not in PREDICTIONS:
        raise UserError(
            f"{where}: prediction_type {prediction} is not supported; choose one of {', '.join(PREDICTIONS)}"
        )
    if scheduler.get("thresholding"):
        raise UserError(f"{where}: thresholding is not supported; set it to false")
    num_timesteps = len(trained) if trained is not None else scheduler.get("num_train_timesteps", 1000)
    schedule = {
        "betas": betas if trained is None else trained,
        "num_timesteps": num_timesteps,
        "beta_start": scheduler.get("beta_start", 1e-4),
        "beta_end": scheduler.get("beta_end", 0.02),
        "zero_terminal_snr": bool(scheduler.get("rescale_betas_zero_snr", False)),
    }
    clips = scheduler.get("clip_sample", name in CLIPPING)
    on_chain = {"prediction": {"class_path": f"{_DIFFUSION}.{PREDICTIONS[prediction]}"}, "num_timesteps": num_timesteps}
    parts = {
        "schedule": ("BetaChain", schedule),
        "parameterization": ("OnChain", on_chain),
        "density": ("UniformSteps", {}),
        "network": ("DiffusersNetwork", {"kind": kind, "settings": settings}),
    }
    made = {key: {"class_path": f"{_DIFFUSION}.{cls}", "init_args": own} for key, (cls, own) in parts.items()}
    clip = scheduler.get("clip_sample_range", 1.0) if clips else None
    return {"class_path": f"{_DIFFUSION}.Diffusion", "init_args": made | classes | {"clip": clip}}


def _sampler(scheduler: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of DDIM at the timesteps that the scheduler would visit."""
    spacing = scheduler.get("timestep_spacing", "leading")
    grid = {"spacing": spacing, "offset": scheduler.get("steps_offset", 0)}
    steps = min(50, scheduler.get("num_train_timesteps", 1000))
    of_grid = {"class_path": f"{_DIFFUSION}.Timesteps", "init_args": grid}
    return {"class_path": f"{_DIFFUSION}.samplers.DDIM", "init_args": {"steps": steps, "grid": of_grid}}
