"""Training of two networks against each other, with an optimizer and steps of its own for each."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_gen.core.errors import UserError
from lit_gen.core.trainer_settings import TrainerSettings
from lit_gen.data.batches import Batch
from lit_gen.families.base import GenerativeModel


class Descent(NamedTuple):
    """A loss and its gradient, averaged over the micro-batches of a batch.

    Attributes:
        loss: Scalar loss of this process, without a graph.
        gradients: Gradient of each parameter of a network, averaged over processes.
    """

    loss: Tensor
    gradients: list[Tensor]


class TwoNetworks(GenerativeModel):
    """Base class of models with two networks, which use manual optimization.

    A batch is a whole step. The model splits it into `accumulate` micro-batches, and each network takes its step after
    the last of them.
    """

    gradient_clip: float | None
    _streams: list[list[Tensor]]

    def use_two_optimizers(self, gradient_clip: float | None) -> None:
        """Turn on manual optimization; the constructor of a model calls it.

        Args:
            gradient_clip: Largest norm of a network's gradient; None does not clip.

        Raises:
            UserError: If `gradient_clip` is not positive.
        """
        if gradient_clip is not None and not gradient_clip > 0:
            raise UserError(f"model.gradient_clip: {gradient_clip} is not positive; give a larger value, or null")
        self.gradient_clip = gradient_clip
        self.automatic_optimization = False

    def check_trainer(self, settings: TrainerSettings) -> None:
        """Raise a UserError if Lightning is to clip gradients or scale losses: with two networks it handles neither."""
        if settings.gradient_clip_val:
            raise UserError(
                f"trainer.gradient_clip_val: {settings.gradient_clip_val} cannot clip the gradients of two networks; "
                f"remove the key and set --model.gradient_clip {settings.gradient_clip_val}"
            )
        if str(settings.precision) in ("16", "16-mixed"):
            raise UserError(
                f"trainer.precision: {settings.precision} cannot scale the losses of two networks; use bf16-mixed"
            )

    def on_fit_start(self) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if data is not None:  # loaders of one's own
            data.check_batches(data.batch_size, self.accumulate, self.trainer.world_size)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the streams of random numbers too, if the run began on more processes."""
        self._streams = []
        for index in range(self.num_streams) if self.num_streams > 1 else ():
            self.clock.rank = self.global_rank * self.num_streams + index
            self.clock.reseed(self.device)
            self._streams.append(generators(self.device))
        super().on_train_batch_start(batch, batch_idx)

    @property
    def num_streams(self) -> int:
        """Number of processes that had the share of this process when the run began, each with random numbers."""
        return 1 if self.clock.kept is None else self.clock.kept.processes // self.trainer.world_size

    @contextmanager
    def stream(self, index: int) -> Iterator[None]:
        """Use the random numbers of one of `num_streams` processes in the block; they continue in its next block."""
        if self.num_streams == 1:
            yield
            return
        set_generators(self._streams[index], self.device)
        yield
        self._streams[index] = generators(self.device)

    def drawn(self, num: int, draw: Callable[[int], Tensor]) -> Tensor:
        """Return a tensor (num, ...) of random numbers for the whole batch, given a function that draws so many."""
        drawn = []
        for index in range(self.num_streams):
            with self.stream(index):
                drawn.append(draw(num // self.num_streams))
        return torch.cat(drawn) if len(drawn) > 1 else drawn[0]

    def micro_batches(self, *tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
        """Yield the tensors of a batch in `accumulate` equal micro-batches, as views; None stays None.

        The clock counts the micro-batches, so that training values are averaged over them.
        """
        num = next(len(tensor) for tensor in tensors if tensor is not None) // self.accumulate
        for part in range(self.accumulate):
            self.clock.micro_batch = part
            with self.stream(part * self.num_streams // self.accumulate):
                yield tuple(None if tensor is None else tensor[part * num : (part + 1) * num] for tensor in tensors)
        self.clock.micro_batch = 0

    def differentiate(self, losses: Iterable[Sequence[Tensor]], network: nn.Module) -> list[Descent]:
        """Return losses and their gradients with respect to the parameters of one network.

        `torch.autograd.grad` computes only the gradients of this network. A backward pass would also accumulate those
        of the other, and under DDP wait for them.

        Args:
            losses: Losses of each micro-batch, which may share a graph. The iterable computes the losses of a
                micro-batch only after those before are differentiated, so that one graph is in memory at a time.
            network: The network; a parameter that a loss does not depend on has the gradient 0.
        """
        parameters = list(network.parameters())
        total: list[Descent] = []
        for part in losses:
            found = [
                Descent(loss.detach(), _gradients(loss, parameters, retain_graph=loss is not part[-1])) for loss in part
            ]
            # autocast caches half-precision weights from one pass to the next, although the weights have changed
            torch.clear_autocast_cache()
            # not in place: autograd may return one tensor for two parameters
            total = [_sum(*pair) for pair in zip(total, found, strict=True)] if total else found
        if self.accumulate > 1:
            total = [Descent(loss / self.accumulate, list(torch._foreach_div(g, self.accumulate))) for loss, g in total]
        if self.trainer.world_size == 1:
            return total
        flat = torch.cat([gradient.flatten() for whole in total for gradient in whole.gradients])
        flat = self.trainer.strategy.reduce(flat, reduce_op="mean")
        mean = iter(flat.split([parameter.numel() for parameter in parameters] * len(total)))
        return [Descent(whole.loss, [next(mean).view_as(parameter) for parameter in parameters]) for whole in total]

    def descend(self, optimizer: Optimizer, network: nn.Module, gradients: Iterable[Tensor]) -> None:
        """Take one step of an optimizer on one network."""
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradient, after callbacks have logged its norm."""
        if self.gradient_clip is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.gradient_clip)


def _sum(one: Descent, other: Descent) -> Descent:
    return Descent(one.loss + other.loss, list(torch._foreach_add(one.gradients, other.gradients)))


def _gradients(loss: Tensor, parameters: list[nn.Parameter], retain_graph: bool) -> list[Tensor]:
    return list(torch.autograd.grad(loss, parameters, retain_graph=retain_graph, materialize_grads=True))


def generators(device: torch.device) -> list[Tensor]:
    """Return the states of the global generators of the CPU and of the device."""
    states = [torch.get_rng_state()]
    return states if device.type == "cpu" else [*states, torch.get_device_module(device).get_rng_state(device)]


def set_generators(states: list[Tensor], device: torch.device) -> None:
    """Set the global generators of the CPU and of the device to states of `generators`."""
    torch.set_rng_state(states[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[1], device)
