"""Tests of every flow-map model: gradients under DDP, and one step on two moons."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_gen.cli import commands
from lit_gen.core.noise import Noise
from lit_gen.core.processes import gather
from lit_gen.data import TwoMoons
from lit_gen.experiment.loading import load_model, load_objects
from lit_gen.families.diffusion import ConsistencyTraining, MeanFlow, Shortcut, Uniform
from lit_gen.families.diffusion.models.flow_map import FlowMapModel
from lit_gen.families.diffusion.samplers import Euler, FlowMapSampler
from lit_gen.metrics import wasserstein
from tests.conftest import ROOT, TINY_UNET
from tests.processes import in_two_processes

EXPERIMENTS: dict[type[FlowMapModel], tuple[str, ...]] = {
    MeanFlow: ("digits_mean_flow", "--model.power=0"),
    Shortcut: ("digits_shortcut", "--model.bootstrap_share=0.5"),
    ConsistencyTraining: ("digits_consistency",),
}


def gradients_of_one_process(kind: type[FlowMapModel], rank: int, folder: Path) -> None:
    """Check in both processes that the gradients of a step are those of the batch of both."""
    kept: dict[str, Any] = {}
    error: Any = kind.error

    def keep(self: FlowMapModel, images: Tensor, t: Tensor, s: Tensor, eps: Tensor, *more: Any) -> Tensor:
        if self.training and "given" not in kept and self.global_rank == rank and torch.is_grad_enabled():
            kept["candidate"] = {"images": images, "t": t, "s": s, "eps": eps}
            kept["before"] = {name: value.detach().clone() for name, value in self.state_dict().items()}
        found: Tensor = error(self, images, t, s, eps, *more)
        return found

    def after_backward(self: FlowMapModel) -> None:
        if "given" not in kept:
            kept["given"], kept["model"] = kept["candidate"], self
            kept["grads"] = {name: p.grad.clone() for name, p in self.network.named_parameters() if p.grad is not None}

    kind.error, kind.on_after_backward = keep, after_backward  # type: ignore[assignment, method-assign]
    name, *more = EXPERIMENTS[kind]
    words = [f"--config={ROOT}/conf/experiment/{name}.yaml", *TINY_UNET, *more, "--wandb.mode=disabled"]
    two = ["--trainer.strategy=ddp", "--trainer.devices=2", "--grid.num_samples=0"]
    commands.fit([*words, *two, f"--run.root={folder}", "--budget.num_images=256"])
    kind.error = error  # type: ignore[method-assign]
    shares = gather(kept["given"])
    built = kept["model"]
    built.load_state_dict(kept["before"])
    whole = {name: torch.cat([share[name] for share in shares]) for name in shares[0]}
    assert len(whole["images"]) == 128 and not torch.equal(shares[0]["eps"], shares[1]["eps"])
    loss = built.reweighted(built.error(**whole, labels=None, augment_labels=None), whole["t"], whole["s"]).mean()
    trained = {name: parameter for name, parameter in built.network.named_parameters() if name in kept["grads"]}
    one = torch.autograd.grad(loss, list(trained.values()))
    assert any(bool((grad != 0).any()) for grad in one)
    for grad, own in zip(one, kept["grads"].values(), strict=True):
        torch.testing.assert_close(own, grad, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        MeanFlow,
        pytest.param(Shortcut, marks=pytest.mark.exhaustive),
        pytest.param(ConsistencyTraining, marks=pytest.mark.exhaustive),
    ],
)
def test_two_processes_have_the_gradients_of_one(kind: type[FlowMapModel], tmp_path: Path) -> None:
    in_two_processes(partial(gradients_of_one_process, kind), tmp_path)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["mean_flow", "shortcut", "consistency"])
def test_one_step_on_two_moons(name: str, tmp_path: Path) -> None:
    """Its distance is at most twice that of 50 steps of the same network, or of a rectified flow of this size.

    A consistency model has no other sampler: the rectified flow of docs/few_steps.md has a distance of 0.055.
    """
    config = f"--config={ROOT}/conf/experiment/points_{name}.yaml"
    run = commands.fit([config, "--data.source=TwoMoons", "--wandb.mode=disabled", f"--run.root={tmp_path}"])
    built, real = load_model(run, load_objects(run).model, "ema"), TwoMoons().load("test").images[:2000]

    def distance(sampler: FlowMapSampler | Euler) -> float:
        samples = built.sample(Noise(0, range(2000)), sampler=sampler)
        return wasserstein(samples.flatten(1), torch.from_numpy(real).flatten(1))

    one, eight = (distance(FlowMapSampler(steps=steps, grid=Uniform())) for steps in (1, 8))
    many = 0.055 if name == "consistency" else distance(Euler(steps=50))
    assert many < 0.2 and one < 2 * many and eight < one, (one, eight, many)
