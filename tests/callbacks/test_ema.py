"""The average of the weights against its closed form."""

from types import SimpleNamespace

import torch
from torch import nn

from lit_gen.callbacks.ema import EMA, named_weights


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3).double())
        self.register_buffer("mean", torch.randn(2).double())
        self.register_buffer("count", torch.tensor(0))


def run_average(decay: float, steps: int) -> tuple[EMA, Network, list[dict[str, torch.Tensor]]]:
    torch.manual_seed(0)
    module = SimpleNamespace(generator=Network())
    ema = EMA(decay)
    ema.on_fit_start(None, module)  # type: ignore[arg-type]
    history = [{name: weight.detach().clone() for name, weight in named_weights(module.generator).items()}]
    for step in range(steps):
        with torch.no_grad():
            module.generator.weight.add_(torch.randn(3).double())
            module.generator.mean.add_(torch.randn(2).double())
            module.generator.count.fill_(step + 1)
        ema.on_train_batch_end(None, module, None, None, step)  # type: ignore[arg-type]
        history.append({name: weight.detach().clone() for name, weight in named_weights(module.generator).items()})
    return ema, module.generator, history


def test_average_is_the_closed_form() -> None:
    ema, network, history = run_average(0.7, 40)
    for name in ("weight", "mean"):
        expected = history[0][name]
        for n, weights in enumerate(history[1:]):
            d = min(0.7, (1 + n) / (10 + n))
            expected = d * expected + (1 - d) * weights[name]
        with ema.averaged(network):
            torch.testing.assert_close(named_weights(network)[name].detach(), expected, rtol=1e-12, atol=1e-12)
    with ema.averaged(network):
        assert network.count == 40


def test_weights_come_back_after_the_block() -> None:
    ema, network, history = run_average(0.9, 5)
    with ema.averaged(network):
        assert not torch.equal(network.weight, history[-1]["weight"])
    for name, weight in named_weights(network).items():
        assert torch.equal(weight, history[-1][name])
