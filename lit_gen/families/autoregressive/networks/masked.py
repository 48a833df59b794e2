r"""Networks that see the past of a pixel by their weights alone: NADE, and perceptrons with masks.

An image is a sequence of T tokens in raster order: pixels, or with `channelwise` their channels one by one. The
parameters of token t, theta_t, are a function of the tokens before it, x_{<t}:

    logistic regressions   theta_t = b_t + D_t x_{<t}                                                FVSBN
    shared weights         theta_t = b_t + V_t sigmoid(c + W_{<t} x_{<t})                            NADE
    masks                  h_1 = f(c_1 + (M_1 W_1) x), h_2 = f(c_2 + (M_2 W_2) h_1), ...
                           theta = b + (M_V V) h_L + (M_D D) x                                       MADE

In NADE a_{t+1} = a_t + W_t x_t turns c + W_{<t} x_{<t} from one token to the next, so all T of them cost O(H T) where H
of them by themselves would cost O(H T^2).

In MADE every token and every hidden unit has a degree: a token its position m in an order, a unit a number d. Unit k
sees what has at most its degree, and the parameters of a token only what has less, so they see the tokens before it
and no others. A unit is known as soon as the tokens up to its degree are; an image is drawn by computing at each step
the units whose degree has come, so that all steps together multiply as often as one pass does.

Papers: Frey et al. 1996, "Does the wake-sleep algorithm produce good density estimators?" (FVSBN); Larochelle and
Murray 2011, "The neural autoregressive distribution estimator" (NADE); Germain et al. 2015,
https://arxiv.org/abs/1502.03509 (MADE)
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gen.core.errors import UserError
from lit_gen.networks.blocks import check_dropout


class TokenNetwork(nn.Module):
    """Images (N, C, H, W) as tokens (N, T, K), and parameters of tokens (N, T, Q) as maps (N, P, H, W).

    Args:
        image_shape: (C, H, W) of the images.
        num_params: P, parameter maps of all channels.
        num_classes: Number of classes; 0 for an unconditional network.
        channelwise: Whether a channel sees those before it of its own pixel: then K = 1, and C tokens are a pixel; else
            K = C.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], num_params: int, num_classes: int = 0, channelwise: bool = False
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.image_shape = image_shape
        self.num_params = num_params
        self.num_classes = num_classes
        self.num_groups = channels if channelwise else 1
        """How many tokens a pixel is."""
        self.num_tokens = height * width * self.num_groups
        self.token_size = channels // self.num_groups
        self.params_per_token = num_params // self.num_groups

    def tokens(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, T, K)."""
        tokens: Tensor = images.unflatten(1, (self.num_groups, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3)
        return tokens

    def maps(self, params: Tensor) -> Tensor:
        """(N, T, Q) -> (N, P, H, W)."""
        grid: Tensor = params.unflatten(1, (*self.image_shape[1:], self.num_groups))
        return grid.permute(0, 3, 4, 1, 2).flatten(1, 2)


class NADENetwork(TokenNetwork):
    """NADE: theta_t = b_t + V_t sigmoid(c + W_{<t} x_{<t} + U y), for a class y.

    Args:
        image_shape: (C, H, W) of the images.
        num_params: P, parameter maps of all channels.
        num_classes: Number of classes; 0 for an unconditional network.
        channelwise: Whether a channel sees those before it of its own pixel.
        hidden: H, number of hidden units.
        dropout: Probability of dropping a hidden unit.

    Raises:
        UserError: there are no hidden units, or dropout is no probability.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_params: int,
        num_classes: int = 0,
        channelwise: bool = False,
        hidden: int = 500,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(image_shape, num_params, num_classes, channelwise)
        if hidden < 1:
            raise UserError(f"model.network.hidden: {hidden} is too few; give at least 1")
        check_dropout(dropout)
        tokens, size = self.num_tokens, self.params_per_token
        self.inputs = nn.Parameter(torch.randn(tokens, self.token_size, hidden) / math.sqrt(tokens * self.token_size))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.outputs = nn.Parameter(torch.randn(tokens, hidden, size) / math.sqrt(hidden))
        self.bias = nn.Parameter(torch.zeros(tokens, size))
        self.classes = embedding(num_classes, hidden) if num_classes else None
        self.dropout = dropout

    def first(self, num: int, labels: Tensor | None) -> Tensor:
        """a_1 = c + U y, (N, H)."""
        if self.classes is None:
            return self.hidden_bias.expand(num, -1)
        activation: Tensor = self.hidden_bias + self.classes(labels)
        return activation

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """The parameters (N, P, H, W) of all pixels of images (N, C, H, W) in [-1, 1]."""
        added = torch.einsum("ntk,tkh->nth", self.tokens(images), self.inputs)
        before = F.pad(added.cumsum(1)[:, :-1], (0, 0, 1, 0))
        hidden = torch.sigmoid(self.first(len(images), labels)[:, None] + before)
        hidden = F.dropout(hidden, self.dropout, self.training)
        return self.maps(torch.einsum("nth,thq->ntq", hidden, self.outputs) + self.bias)

    def start(self, num: int, labels: Tensor | None = None) -> "Activations":
        """As many empty images, to be drawn with `step`."""
        return Activations(self.first(num, labels))

    def step(self, state: "Activations", values: Tensor | None = None) -> Tensor:
        """The parameters (N, Q) of the next token.

        Args:
            state: What `start` gave; it is changed.
            values: (N, K), the token before; None at the first step.
        """
        if values is not None:
            state.activation = state.activation + values @ self.inputs[state.position]
            state.position += 1
        return torch.sigmoid(state.activation) @ self.outputs[state.position] + self.bias[state.position]


class Activations:
    """NADE's a_t, (N, H), and t."""

    def __init__(self, activation: Tensor) -> None:
        self.activation = activation
        self.position = 0


class MaskedMLP(TokenNetwork):
    """MADE: a perceptron whose weights are masked, in one or several ways.

    The first mask is in raster order. Hidden units share their degrees 1 .. T - 1 out evenly, in an order that is drawn
    for each mask, so that no way between two tokens is cut that need not be. A class adds to all units and parameters.

    Args:
        image_shape: (C, H, W) of the images.
        num_params: P, parameter maps of all channels.
        num_classes: Number of classes; 0 for an unconditional network.
        channelwise: Whether a channel sees those before it of its own pixel.
        hidden: Number of units of each hidden layer.
        direct: Let the parameters of a token see those before it directly, too.
        num_masks: Number of masks.
        random_orders: Draw an order of the tokens for each mask but the first.
        dropout: Probability of dropping a hidden unit.
        mask_seed: Seed of the orders and degrees.

    Raises:
        UserError: the sizes do not suit, nothing connects one token to another, or dropout is no probability.
    """

    orders: Tensor
    """The token at each position of each mask's order, (num_masks, T)."""

    positions: Tensor
    """The position of each token, the first being 1, (num_masks, T)."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_params: int,
        num_classes: int = 0,
        channelwise: bool = False,
        hidden: list[int] | tuple[int, ...] = (500,),
        direct: bool = True,
        num_masks: int = 1,
        random_orders: bool = False,
        dropout: float = 0.0,
        mask_seed: int = 0,
    ) -> None:
        super().__init__(image_shape, num_params, num_classes, channelwise)
        if any(size < 1 for size in hidden) or num_masks < 1:
            raise UserError(
                f"model.network: hidden {list(hidden)} and num_masks {num_masks} must be at least 1, each of them"
            )
        if not hidden and not direct:
            raise UserError("model.network.direct: without hidden units it must be true, or pixels see nothing")
        check_dropout(dropout)
        tokens, generator = self.num_tokens, torch.Generator().manual_seed(mask_seed)
        self.num_masks = num_masks
        self.dropout = dropout
        orders = [torch.arange(tokens)]
        for _ in range(1, num_masks):
            orders.append(torch.randperm(tokens, generator=generator) if random_orders else orders[0])
        self.register_buffer("orders", torch.stack(orders), persistent=False)
        self.register_buffer("positions", self.orders.argsort(1) + 1, persistent=False)
        for layer, size in enumerate(hidden):
            even = 1 + torch.arange(size) * max(tokens - 1, 1) // size
            drawn = [even[torch.randperm(size, generator=generator)] for _ in range(1, num_masks)]
            self.register_buffer(f"degrees_{layer}", torch.stack([even, *drawn]), persistent=False)
        num_inputs, num_outputs = tokens * self.token_size, tokens * self.params_per_token
        sizes = [num_inputs, *hidden]
        self.hidden = nn.ModuleList([nn.Linear(one, next_) for one, next_ in zip(sizes[:-1], sizes[1:], strict=True)])
        self.bias = nn.Parameter(torch.zeros(num_outputs))
        self.output = nn.Linear(sizes[-1], num_outputs, bias=False) if hidden else None
        self.direct = nn.Linear(num_inputs, num_outputs, bias=False) if direct else None
        self.classes = nn.ModuleList(embedding(num_classes, n) for n in (*hidden, num_outputs) if num_classes)

    def _linears(self) -> list[nn.Linear]:
        return [cast(nn.Linear, linear) for linear in self.hidden]

    def degrees(self, mask: int) -> list[Tensor]:
        """The degrees of inputs, of the units of each hidden layer, and of outputs; those at the ends are positions."""
        position = self.positions[mask]
        hidden = [getattr(self, f"degrees_{layer}")[mask] for layer in range(len(self.hidden))]
        inputs, outputs = (position.repeat_interleave(n) for n in (self.token_size, self.params_per_token))
        return [inputs, *hidden, outputs]

    def forward(self, images: Tensor, labels: Tensor | None = None, mask: int = 0) -> Tensor:
        """The parameters (N, P, H, W) of all pixels of images (N, C, H, W) in [-1, 1], under one of the masks."""
        inputs, *hidden, outputs = self.degrees(mask)
        x = h = self.tokens(images).flatten(1)
        before = inputs
        for layer, (linear, degrees) in enumerate(zip(self._linears(), hidden, strict=True)):
            h = F.linear(h, linear.weight * (degrees[:, None] >= before), linear.bias) + self.of_class(layer, labels)
            h = F.dropout(F.relu(h), self.dropout, self.training)
            before = degrees
        params = self.bias + self.of_class(-1, labels)
        if self.output is not None:
            params = params + F.linear(h, self.output.weight * (outputs[:, None] > before))
        if self.direct is not None:
            params = params + F.linear(x, self.direct.weight * (outputs[:, None] > inputs))
        return self.maps(params.expand(len(images), -1).unflatten(1, (self.num_tokens, -1)))

    def of_class(self, layer: int, labels: Tensor | None) -> Tensor | float:
        """What the classes add to a hidden layer, or (layer -1) to the parameters."""
        return 0.0 if labels is None or not self.classes else self.classes[layer](labels)

    def start(self, num: int, labels: Tensor | None = None, mask: int = 0) -> "Units":
        """As many empty images, to be drawn with `step` in the order of a mask."""
        _, *hidden, _ = self.degrees(mask)
        due = [d.argsort().split(torch.bincount(d, minlength=self.num_tokens).tolist()) for d in hidden]
        inputs = self.bias.new_zeros(num, self.num_tokens, self.token_size)
        units = [self.bias.new_zeros(num, len(degrees)) for degrees in hidden]
        return Units(inputs, units, [list(turns) for turns in due], self.orders[mask].tolist(), labels)

    def step(self, state: "Units", values: Tensor | None = None) -> Tensor:
        """The parameters (N, Q) of the next token of the order.

        Args:
            state: What `start` gave; it is changed.
            values: (N, K), the token before; None at the first step.
        """
        if values is not None:
            state.inputs[:, state.order[state.known]] = values
            state.known += 1
        # What is not known yet is zero, so that weights need no masks here.
        x = h = state.inputs.flatten(1)
        for layer, linear in enumerate(self._linears()):
            due = state.due[layer][state.known]
            if len(due):
                added = self.of_class(layer, state.labels)
                new = F.linear(h, linear.weight[due], linear.bias[due])
                state.units[layer][:, due] = F.relu(new + (added if isinstance(added, float) else added[:, due]))
            h = state.units[layer]
        token = state.order[state.known]
        rows = slice(token * self.params_per_token, (token + 1) * self.params_per_token)
        added = self.of_class(-1, state.labels)
        params = self.bias[rows] + (added if isinstance(added, float) else added[:, rows])
        if self.output is not None:
            params = params + F.linear(h, self.output.weight[rows])
        if self.direct is not None:
            params = params + F.linear(x, self.direct.weight[rows])
        return params.expand(len(x), -1)


class LogisticRegressions(MaskedMLP):
    """FVSBN: theta_t = b_t + D_t x_{<t} + U_t y, a logistic regression for each token of binary images.

    Args:
        image_shape: (C, H, W) of the images.
        num_params: P, parameter maps of all channels.
        num_classes: Number of classes; 0 for an unconditional network.
        channelwise: Whether a channel sees those before it of its own pixel.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], num_params: int, num_classes: int = 0, channelwise: bool = False
    ) -> None:
        super().__init__(image_shape, num_params, num_classes, channelwise, hidden=[])


class Units:
    """What is known of images that are being drawn under a mask.

    Args:
        inputs: (N, T, K), zero where it is not drawn yet.
        units: The units of each hidden layer, (N, H), zero where they are not known yet.
        due: Which units of each layer become known with as many tokens, 0 .. T - 1.
        order: The token at each position.
        labels: (N,) classes.
    """

    def __init__(
        self,
        inputs: Tensor,
        units: list[Tensor],
        due: list[list[Tensor]],
        order: list[int],
        labels: Tensor | None,
    ) -> None:
        self.inputs, self.units, self.due, self.order, self.labels = inputs, units, due, order, labels
        self.known = 0


def embedding(num_classes: int, size: int) -> nn.Embedding:
    """What each class adds to as many units, little at first."""
    table = nn.Embedding(num_classes, size)
    nn.init.normal_(table.weight, std=0.02)
    return table
