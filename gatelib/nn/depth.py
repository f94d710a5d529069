"""Shortcuts around any module: residual, gated, stochastic and dense; and deep stacks of them.
Imports torch and gatelib.nn: branches, check and guest.
Must not import gatelib.reference, gatelib.lab or gatelib.data.
"""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import PackedSequence

from gatelib.nn import branches
from gatelib.nn.check import (
    check_choice,
    check_dim,
    check_dropout,
    check_dtype,
    check_flags,
    check_number,
    check_sizes,
)
from gatelib.nn.guest import entries, given, is_tensor, rewrapped, values_of

__all__ = ["Deep", "Dense", "Residual", "StochasticDepth"]

BranchGate = Literal["rezero", "layerscale"]
Connection = Literal["plain", "residual", "postactivation", "dense"]
Activation = Literal["relu", "tanh", "identity"]
Initialization = Literal["normal", "orthogonal"]

STARTS = {"rezero": 0.0, "layerscale": 0.1}
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "identity": nn.Identity,
}
CRITICAL = {"relu": math.sqrt(2), "tanh": 1.0, "identity": 1.0}
"""The gain at which a plain net with zero biases neither shrinks nor grows its gradient."""


class StochasticDepth(nn.Module):
    """A random gate on a whole branch: y = g x, with one g for each example.

    g is 1/(1 - p) with probability 1 - p and 0 otherwise, so that its mean is 1 and nothing is
    left to do in a test. Identity after `eval()`.

    Args:
        p: probability of dropping the branch of an example, as in `torchvision.ops`' module of
            this name with mode "row".

    Shapes: x (B, ...) -> y of x's shape. noise (B,): uniform in [0, 1), a branch is kept where it
    is below 1 - p; given, it is the noise used, in training or not.

    Raises: TypeError or ValueError naming the argument that is wrong.
    Source: Huang et al. 2016, arXiv:1603.09382, equations 2 and 5, scaled in training instead.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        check_dropout(p, "p")
        self.p = float(p)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Gate a batch of branches."""
        if not is_tensor(x):
            raise TypeError(f"x: expected a tensor, got {type(x).__name__}")
        if noise is None and not (self.training and self.p > 0):
            return x
        return branches.gated_rows(x, noise, 1 - self.p)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"p={self.p}"


class Residual(nn.Module):
    """A shortcut around any module: y = φ(s(x) + g α f(x)).

    Args:
        block: f, any module. If it returns a tuple, as a recurrent layer does, the shortcut goes
            round the first entry and the others are passed on.
        gate: α, a learned gate on the branch. None for 1; "rezero" for one number that starts at 0
            (ReZero; SkipInit is the same gate); "layerscale" for one number a feature; or a module
            that maps x to a gate which broadcasts to f(x), such as `gatelib.nn.Gate`.
        features: how many numbers a "layerscale" has; needed there and nowhere else.
        dim: which dimension of f(x) holds the features; 1 for images (B, C, H, W).
        initial: where α starts; None for 0 ("rezero") or 0.1 ("layerscale"; its authors go down to
            1e-6 for deeper nets).
        drop: probability that g, drawn for each example, shuts the branch; see `StochasticDepth`.
        shortcut: s, a module where f changes the shape; None for the identity.
        activation: φ, a module on the sum; None for none. With a ReLU here, as in the first
            residual nets, the shortcut is no longer the identity.
        device, dtype: of α.

    Shapes: x (B, ...) -> y of f(x)'s shape, which must be s(x)'s: nothing is broadcast. A packed
    batch stays packed: s, g, α and φ act on its steps, and g is one for each row. Further
    arguments of `forward` go to `block`.

    A module that may write into its input (`nn.ReLU(inplace=True)`, a class of your own) gets a
    copy of x, in every mode; torch's modules and this library's get x itself.

    Raises: TypeError or ValueError naming the argument that is wrong.

    Source: He et al. 2016, arXiv:1603.05027, equation 3; ReZero, Bachlechner et al. 2021,
    arXiv:2003.04887, equation 1; SkipInit, De & Smith 2020, arXiv:2002.10444; LayerScale, Touvron
    et al. 2021, arXiv:2103.17239; stochastic depth, Huang et al. 2016, arXiv:1603.09382.
    """

    alpha: Tensor | None

    def __init__(
        self,
        block: nn.Module,
        gate: BranchGate | nn.Module | None = None,
        *,
        features: int | None = None,
        dim: int = -1,
        initial: float | None = None,
        drop: float = 0.0,
        shortcut: nn.Module | None = None,
        activation: nn.Module | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_modules(block, shortcut, activation)
        _check_gate(gate, features, initial)
        check_dropout(drop, "drop")
        check_dim(dim)
        check_dtype(dtype)
        self.block, self.shortcut, self.activation = block, shortcut, activation
        self.gate = gate if isinstance(gate, nn.Module) else None
        self.drop = StochasticDepth(drop)
        self.dim = dim
        self.initial = STARTS.get(str(gate), 1.0) if initial is None else float(initial)
        empty = torch.empty(features or 1, device=device, dtype=dtype)
        self.alpha = nn.Parameter(empty) if isinstance(gate, str) else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """α as it starts; the modules inside are left alone."""
        if self.alpha is not None:
            nn.init.constant_(self.alpha, self.initial)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """s(x) + g α f(x); a tuple if `block` returns one."""
        if isinstance(x, fx.Proxy) and x.tracer.root is self:
            args, kwargs = (), {}  # fx hands a symbol for each of them; there is nothing behind it
        values = values_of("x", x)
        branch, rest = entries(self.block, self.block(given(self.block, x), *args, **kwargs), x)
        skip = values
        if self.shortcut is not None:
            skip = self.shortcut(given(self.shortcut, values))
        branch = branches.fitting("block", branch, skip)
        if self.gate is not None:
            branch = branches.fitting("gate", self.gate(given(self.gate, values)) * branch, skip)
        y = skip + self._dropped(self._scaled(branch, x), x)
        y = rewrapped(y if self.activation is None else self.activation(y), x)
        return y if rest is None else (y, *rest)

    def _dropped(self, branch: Tensor, x: Any) -> Tensor:
        """g times the branch: in a packed batch, too, one g for each row."""
        if not (isinstance(x, PackedSequence) and self.drop.training and self.drop.p > 0):
            return self.drop(branch)  # type: ignore[no-any-return]
        sizes = x.batch_sizes.tolist()
        rows = torch.cat([torch.arange(size) for size in sizes]).to(branch.device)
        noise = torch.rand(sizes[0], device=branch.device)
        return self.drop(branch, noise[rows])  # type: ignore[no-any-return]

    def _scaled(self, branch: Tensor, x: Any) -> Tensor:
        """α f(x), α along its own dimension."""
        if self.alpha is None:
            return branch
        if isinstance(x, PackedSequence) and self.alpha.numel() > 1 and self.dim != -1:
            raise ValueError(f"dim: expected -1 for a packed batch, got {self.dim}")
        return branches.scaled(branch, self.alpha, self.dim)

    def extra_repr(self) -> str:
        """The arguments that aren't modules."""
        if self.alpha is None:
            return ""
        return f"alpha=({self.alpha.numel()},), initial={self.initial}"


class Dense(nn.Module):
    """Appends what a module finds to what it read: y = [x, f(x)].

    Args:
        block: f, any module whose output differs from x in dimension `dim` alone. If it returns a
            tuple, the first entry is appended and the others are passed on.
        dim: the dimension of the features.

    Shapes: x (..., D) -> y (..., D + G), where f(x) is (..., G). Packed batches and modules that
    write into their input are treated as in `Residual`.

    Raises: TypeError or ValueError naming the argument that is wrong.
    Source: Huang et al. 2017, arXiv:1608.06993, equation 2.
    """

    def __init__(self, block: nn.Module, *, dim: int = -1) -> None:
        super().__init__()
        if not isinstance(block, nn.Module):
            raise TypeError(f"block: expected a module, got {type(block).__name__}")
        check_dim(dim)
        self.block, self.dim = block, dim

    def forward(self, x: Any) -> Any:
        """x, and f(x) behind it; a tuple if `block` returns one."""
        values = values_of("x", x)
        found, rest = entries(self.block, self.block(given(self.block, x)), x)
        y = rewrapped(branches.appended(values, found, self.dim), x)
        return y if rest is None else (y, *rest)


class Deep(nn.Module):
    """Layers of one matrix each, W φ(x) + b, with one kind of connection between them.

    Args:
        size: D, features of the input, and of the output unless it is dense.
        depth: L, the number of layers.
        connection: "plain", x' = a; "residual", x' = x + g α a; "postactivation",
            x' = φ(x + W x + b); "dense", x' = [x, a].
        activation: φ.
        growth: features that each dense layer adds; None for `size`.
        gate, drop: of a residual connection, as in `Residual`; `drop` is one probability, or one
            for each layer.
        tied: whether all layers share one matrix and bias. Their gates are their own.
        initialization: "normal", of standard deviation gain/√inputs, or "orthogonal" times gain.
        gain: None for the critical gain, √2 for a ReLU and 1 for the others; divided by √L where a
            residual branch has no gate, or the stream's variance would double with every layer.
        bias, device, dtype: as in `torch.nn.Linear`; biases start at 0.

    Shapes: x (..., D) -> (..., D), dense (..., D + L·growth). The output is a preactivation but for
    "postactivation", as in He et al. 2016, arXiv:1603.05027: who reads it applies φ first.
    Attributes: output_size; layers, an `nn.ModuleList` of the L layers.

    Raises: TypeError or ValueError naming the argument that is wrong.
    Source of the critical gains: Schoenholz et al. 2017, arXiv:1611.01232; He et al. 2015,
    arXiv:1502.01852.
    """

    def __init__(
        self,
        size: int,
        depth: int,
        connection: Connection = "residual",
        *,
        activation: Activation = "relu",
        growth: int | None = None,
        gate: BranchGate | None = None,
        drop: float | tuple[float, ...] = 0.0,
        tied: bool = False,
        initialization: Initialization = "normal",
        gain: float | None = None,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(size=size, depth=depth)
        check_flags(tied=tied, bias=bias)
        check_dtype(dtype)
        _check_names(connection, activation, initialization)
        self.connection, self.activation, self.tied = connection, activation, tied
        self.initialization, self.size = initialization, size
        drops = _drops(drop, depth)
        _check_connection(connection, growth, gate, drops, tied)
        if growth is not None:
            check_sizes(growth=growth)
        added = (growth or size) if connection == "dense" else 0
        self.output_size = size + depth * added
        self.gain = _gain(gain, activation, connection, gate, depth)
        options = {"bias": bias, "device": device, "dtype": dtype}
        widths = [size + layer * added for layer in range(1 if tied else depth)]
        matrices = [nn.Linear(width, added or size, **options) for width in widths]  # type: ignore[arg-type]
        self.layers = nn.ModuleList(
            self._layer(matrices[0 if tied else layer], gate, drops[layer], size)
            for layer in range(depth)
        )
        self.reset_parameters()

    def _layer(
        self, matrix: nn.Linear, gate: BranchGate | None, drop: float, size: int
    ) -> nn.Module:
        phi = ACTIVATIONS[self.activation]
        if self.connection == "postactivation":
            return Residual(matrix, activation=phi())
        branch = nn.Sequential(phi(), matrix)
        if self.connection == "plain":
            return branch
        if self.connection == "dense":
            return Dense(branch)
        features = size if gate == "layerscale" else None
        like = {"device": matrix.weight.device, "dtype": matrix.weight.dtype}
        return Residual(branch, gate, features=features, drop=drop, **like)  # type: ignore[arg-type]

    def matrices(self) -> list[nn.Linear]:
        """The linear map of each layer; L times the same one where they are tied."""
        return [m for layer in self.layers for m in layer.modules() if isinstance(m, nn.Linear)]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Matrices by `initialization` and `gain`, biases 0, gates as they start."""
        for matrix in dict.fromkeys(self.matrices()):
            if self.initialization == "orthogonal":
                nn.init.orthogonal_(matrix.weight, self.gain)
            else:
                nn.init.normal_(matrix.weight, std=self.gain / math.sqrt(matrix.in_features))
            if matrix.bias is not None:
                nn.init.zeros_(matrix.bias)
        for layer in self.layers:
            if isinstance(layer, Residual):
                layer.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Run all layers."""
        branches.check_stream(x, self.size, next(self.parameters(), None))
        for layer in self.layers:
            x = layer(x)
        return x

    def states(self, x: Tensor) -> list[Tensor]:
        """x before the first layer and behind each: L + 1 tensors."""
        branches.check_stream(x, self.size, next(self.parameters(), None))
        found = [x]
        for layer in self.layers:
            found.append(layer(found[-1]))
        return found

    def extra_repr(self) -> str:
        """The arguments that the layers don't show."""
        return f"{self.connection}, {self.activation}, gain={self.gain:.4g}, tied={self.tied}"


def _check_modules(block: object, shortcut: object, activation: object) -> None:
    if not isinstance(block, nn.Module):
        raise TypeError(f"block: expected a module, got {type(block).__name__}")
    for name, module in {"shortcut": shortcut, "activation": activation}.items():
        if module is not None and not isinstance(module, nn.Module):
            raise TypeError(f"{name}: expected a module or None, got {type(module).__name__}")


def _check_names(connection: str, activation: str, initialization: str) -> None:
    check_choice("connection", connection, get_args(Connection))
    check_choice("activation", activation, get_args(Activation))
    check_choice("initialization", initialization, get_args(Initialization))


def _check_gate(gate: object, features: object, initial: object) -> None:
    if gate is not None and not isinstance(gate, nn.Module):
        check_choice("gate", gate, get_args(BranchGate))
    if isinstance(gate, str) and gate == "layerscale":
        check_sizes(features=features)
    elif features is not None:
        raise ValueError(f"features: expected None unless gate is 'layerscale', got {features!r}")
    if initial is not None:
        if not isinstance(gate, str):
            raise ValueError(f"initial: expected None where gate is no name, got {initial!r}")
        check_number(initial, "initial")


def _drops(drop: float | tuple[float, ...], depth: int) -> tuple[float, ...]:
    drops = drop if isinstance(drop, tuple) else (drop,) * depth
    if len(drops) != depth:
        raise ValueError(f"drop: expected {depth} probabilities, one a layer, got {len(drops)}")
    for p in drops:
        check_dropout(p, "drop")
    return drops


def _check_connection(
    connection: str, growth: object, gate: object, drops: tuple[float, ...], tied: bool
) -> None:
    if connection != "dense" and growth is not None:
        raise ValueError(f"growth: expected None for {connection!r}, got {growth!r}")
    if gate is not None:
        check_choice("gate", gate, get_args(BranchGate))
    if connection != "residual" and (gate is not None or any(drops)):
        name, value = ("gate", gate) if gate is not None else ("drop", max(drops))
        raise ValueError(f"{name}: expected none for connection {connection!r}, got {value!r}")
    if connection == "dense" and tied:
        raise ValueError("tied: expected False for 'dense', whose matrices have different shapes")


def _gain(gain: float | None, activation: str, connection: str, gate: object, depth: int) -> float:
    if gain is not None:
        check_number(gain, "gain")
        if gain < 0:
            raise ValueError(f"gain: expected at least 0, got {gain}")
        return float(gain)
    unscaled = connection in ("plain", "dense") or gate is not None
    return CRITICAL[activation] / (1.0 if unscaled else math.sqrt(depth))
