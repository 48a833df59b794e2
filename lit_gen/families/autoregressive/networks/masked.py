r"""Dense autoregressive networks: NADE, and perceptrons with masked weights.

An image is a sequence of T tokens in raster order: pixels, or with `channelwise` single channels of pixels. The
parameters theta_t of token t are a function of the tokens before it, x_{<t}:

    logistic regressions   theta_t = b_t + D_t x_{<t}                                                FVSBN
    shared weights         theta_t = b_t + V_t sigmoid(c + W_{<t} x_{<t})                            NADE
    masks                  h_1 = f(c_1 + (M_1 W_1) x), h_2 = f(c_2 + (M_2 W_2) h_1), ...
                           theta = b + (M_V V) h_L + (M_D D) x                                       MADE

In NADE, the recursion a_{t+1} = a_t + W_t x_t updates a_t = c + W_{<t} x_{<t} from one token to the next. With H hidden
units, all T tokens then cost O(H T) in place of O(H T^2).

In MADE, every token and every hidden unit has a degree: the degree of a token is its position m in an order, that of a
unit a number d. A unit sees inputs of at most its degree, and the parameters of a token see only inputs of a smaller
degree, so they depend on the tokens before and on no others. A unit can be computed as soon as the tokens up to its
degree are known. Each step of sampling computes the units of the next degree, so that all steps together take as many
multiplications as one pass.

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
    """Base class: images (N, C, H, W) as tokens (N, T, K), and their parameters (N, T, Q) as maps (N, P, H, W).

    Args:
        image_shape: (C, H, W) of the images.
        num_params: P, parameter maps of all channels.
        num_classes: Number of classes; 0 for an unconditional network.
        channelwise: Whether a channel also sees the channels before it of its own pixel. A pixel is then C tokens with
            K = 1, and otherwise one token with K = C.
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
        """Number of tokens per pixel."""
        self.num_tokens = height * width * self.num_groups
        self.token_size = channels // self.num_groups
        self.params_per_token = num_params // self.num_groups

    def tokens(self, images: Tensor) -> Tensor:
        """Return images as tokens: (N, C, H, W) -> (N, T, K)."""
        out: Tensor = images.unflatten(1, (self.num_groups, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3)
        return out

    def maps(self, params: Tensor) -> Tensor:
        """Return parameters of tokens as maps: (N, T, Q) -> (N, P, H, W)."""
        grid = params.unflatten(1, (*self.image_shape[1:], self.num_groups))
        out: Tensor = grid.permute(0, 3, 4, 1, 2).flatten(1, 2)
        return out


class NADENetwork(TokenNetwork):
    """NADE: theta_t = b_t + V_t sigmoid(c + W_{<t} x_{<t} + U y), for a class y.

    Args:
        image_shape: (C, H, W) of the images.
        num_params: P, parameter maps of all channels.
        num_classes: Number of classes; 0 for an unconditional network.
        channelwise: Whether a channel also sees the channels before it of its own pixel.
        hidden: Number H of hidden units.
        dropout: Dropout probability of the hidden units.

    Raises:
        UserError: If there are no hidden units, or dropout is not a probability.
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
        """Return a_1 = c + U y, (N, H)."""
        if self.classes is None:
            return self.hidden_bias.expand(num, -1)
        out: Tensor = self.hidden_bias + self.classes(labels)
        return out

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the parameters (N, P, H, W) of all pixels of images (N, C, H, W) in [-1, 1]."""
        added = torch.einsum("ntk,tkh->nth", self.tokens(images), self.inputs)
        before = F.pad(added.cumsum(1)[:, :-1], (0, 0, 1, 0))
        hidden = torch.sigmoid(self.first(len(images), labels)[:, None] + before)
        hidden = F.dropout(hidden, self.dropout, self.training)
        return self.maps(torch.einsum("nth,thq->ntq", hidden, self.outputs) + self.bias)

    def start(self, num: int, labels: Tensor | None = None) -> "Activations":
        """Return the state before the first step of `num` images, for `step`."""
        return Activations(self.first(num, labels))

    def step(self, state: "Activations", values: Tensor | None = None) -> Tensor:
        """Return the parameters (N, Q) of the next token.

        Args:
            state: The state from `start`, which is changed in place.
            values: (N, K), the token before; None at the first step.
        """
        if values is not None:
            state.activation = state.activation + values @ self.inputs[state.position]
            state.position += 1
        return torch.sigmoid(state.activation) @ self.outputs[state.position] + self.bias[state.position]


class Activations:
    """State of NADE in sampling: a_t, (N, H), and t."""

    def __init__(self, activation: Tensor) -> None:
        self.activation = activation
        self.position = 0


class MaskedMLP(TokenNetwork):
    """MADE: a perceptron with one or more masks of its weights.

    The order of the first mask is the raster. The degrees 1 .. T - 1 are spread evenly over the hidden units of a
    layer, so that masks remove no more connections between tokens than necessary; each mask but the first permutes them
    at random. A class adds a learned vector to the hidden units and to the parameters.

    Args:
        image_shape: (C, H, W) of the images.
        num_params: P, parameter maps of all channels.
        num_classes: Number of classes; 0 for an unconditional network.
        channelwise: Whether a channel also sees the channels before it of its own pixel.
        hidden: Number of units of each hidden layer.
        direct: Add direct connections from the tokens before to the parameters of a token.
        num_masks: Number of masks.
        random_orders: Draw a random order of the tokens for each mask but the first.
        dropout: Dropout probability of the hidden units.
        mask_seed: Seed of the orders and degrees.

    Raises:
        UserError: If a size is not positive, nothing connects the tokens, or dropout is not a probability.
    """

    orders: Tensor
    """Token at each position of the order of each mask, (num_masks, T)."""

    positions: Tensor
    """Position of each token in the order of each mask, from 1 to T, (num_masks, T)."""

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
                f"model.network: hidden {list(hidden)} and num_masks {num_masks} must be positive; give at least 1"
            )
        if not hidden and not direct:
            raise UserError(
                "model.network.direct: false disconnects all pixels without hidden units; set it to true or add some"
            )
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
        """Return the degrees of the inputs, of the units of each hidden layer, and of the outputs.

        The degrees of inputs and outputs are positions.
        """
        position = self.positions[mask]
        hidden = [getattr(self, f"degrees_{layer}")[mask] for layer in range(len(self.hidden))]
        inputs, outputs = (position.repeat_interleave(n) for n in (self.token_size, self.params_per_token))
        return [inputs, *hidden, outputs]

    def forward(self, images: Tensor, labels: Tensor | None = None, mask: int = 0) -> Tensor:
        """Return the parameters (N, P, H, W) of all pixels of images (N, C, H, W) in [-1, 1], under one mask."""
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
        """Return what the classes add to a hidden layer, or to the parameters for layer -1."""
        return 0.0 if labels is None or not self.classes else self.classes[layer](labels)

    def start(self, num: int, labels: Tensor | None = None, mask: int = 0) -> "Units":
        """Return the state before the first step of `num` images, for `step` in the order of a mask."""
        _, *hidden, _ = self.degrees(mask)
        due = [d.argsort().split(torch.bincount(d, minlength=self.num_tokens).tolist()) for d in hidden]
        inputs = self.bias.new_zeros(num, self.num_tokens, self.token_size)
        units = [self.bias.new_zeros(num, len(degrees)) for degrees in hidden]
        return Units(inputs, units, [list(turns) for turns in due], self.orders[mask].tolist(), labels)

    def step(self, state: "Units", values: Tensor | None = None) -> Tensor:
        """Return the parameters (N, Q) of the next token of the order.

        Args:
            state: The state from `start`, which is changed in place.
            values: (N, K), the token before; None at the first step.
        """
        if values is not None:
            state.inputs[:, state.order[state.known]] = values
            state.known += 1
        # unknown inputs and units are zero, so the weights need no masks here
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
    """FVSBN: theta_t = b_t + D_t x_{<t} + U_t y, a logistic regression per token of binary images.

    Args:
        image_shape: (C, H, W) of the images.
        num_params: P, parameter maps of all channels.
        num_classes: Number of classes; 0 for an unconditional network.
        channelwise: Whether a channel also sees the channels before it of its own pixel.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], num_params: int, num_classes: int = 0, channelwise: bool = False
    ) -> None:
        super().__init__(image_shape, num_params, num_classes, channelwise, hidden=[])


class Units:
    """State of MADE in sampling under a mask.

    Args:
        inputs: Tokens (N, T, K), zero if not sampled yet.
        units: Units (N, H) of each hidden layer, zero if not known yet.
        due: For each layer, the units that become known with 0 .. T - 1 tokens.
        order: Token at each position.
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
    """Return an embedding of classes with small initial values, to add to `size` units."""
    table = nn.Embedding(num_classes, size)
    nn.init.normal_(table.weight, std=0.02)
    return table
