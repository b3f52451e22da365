"""AdamW for every way in which weights are held: float32, bfloat16 with float32 masters, states of 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.adamw import adamw

from bbu.config import TrainingConfig
from bbu.models.acceleration.four_bit import bitsandbytes

EPS = 1e-8
AT_ONCE = 2**25  # weights that are float32 at one time; 16 bytes each
_Slice = tuple[nn.Parameter, int, int]  # of a flattened weight


def build_optimizer(
    groups: list[dict[str, Any]], training: TrainingConfig, embeddings: Sequence[nn.Module]
) -> Optimizer:
    """AdamW over parameter groups; it leaves out a step on the device where ``found_inf`` is 1.

    Args:
        groups: of weights that learn.
        embeddings: modules whose states stay 32 bits wide where others have 8 (Dettmers et al. 2022, arXiv:2110.02861).

    Raises:
        ConfigError: training.optimizer needs a package that is not installed.
    """
    options: dict[str, Any] = {"betas": (0.9, training.adam_beta2), "eps": EPS}
    if training.optimizer == "adamw_8bit":
        return _eight_bits(groups, embeddings, options)
    half = any(weight.dtype == torch.bfloat16 for group in groups for weight in group["params"])
    if half and not training.deepspeed:  # which has float32 masters itself
        return MasterAdamW(groups, **options)
    return AdamW(groups, fused=True, **options)


def _eight_bits(groups: list[dict[str, Any]], embeddings: Sequence[nn.Module], options: Mapping[str, Any]) -> Optimizer:
    library = bitsandbytes("training.optimizer=adamw_8bit")

    class AdamW8bit(library.optim.AdamW8bit):  # type: ignore[misc, name-defined]
        """bitsandbytes' own. It cannot leave out a step on the device, so the host waits for ``found_inf``."""

        def step(self, closure: Callable[[], float] | None = None) -> Any:
            if bool(getattr(self, "found_inf", 0)):
                return None
            return super().step(closure)

    for module in embeddings:
        library.optim.GlobalOptimManager.get_instance().register_module_override(module, "weight", {"optim_bits": 32})
    optimizer: Optimizer = AdamW8bit(groups, **options)
    return optimizer


class MasterAdamW(Optimizer):
    """AdamW on float32 masters of bfloat16 weights.

    A weight is its master rounded to the nearest bfloat16; the optimizer keeps what rounding took away, as a 16-bit
    whole number of units in the last place of the master. Both together are the master, to the last bit, in 4 bytes
    (the way of TransformerEngine's ``store_param_remainders``). A step makes masters and gradients float32, some
    weights at a time. It equals torch's fused AdamW on the masters. Float32 weights are their own masters.

    State of a weight: ``step``, float32 ``exp_avg`` and ``exp_avg_sq``; of bfloat16 weights an int16 ``remainder``.
    """

    found_inf: torch.Tensor | None = None  # 1: leave out the step

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = EPS,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step on the gradients that there are."""
        assert closure is None
        for group in self.param_groups:
            learning = [weight for weight in group["params"] if weight.grad is not None]
            for weight in learning:
                self._prepare(weight)
            for dtype in (torch.float32, torch.bfloat16):
                for some in _slices([weight for weight in learning if weight.dtype == dtype]):
                    self._step(some, group)
            steps = [self.state[weight]["step"] for weight in learning]
            if steps:
                torch._foreach_add_(steps, 1.0 if self.found_inf is None else 1.0 - self.found_inf)

    def _prepare(self, weight: nn.Parameter) -> None:
        state = self.state[weight]
        if state:
            return
        state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = torch.zeros_like(weight, dtype=torch.float32)
        if weight.dtype == torch.bfloat16:
            state["remainder"] = torch.zeros_like(weight, dtype=torch.int16)

    def _step(self, some: Sequence[_Slice], group: Mapping[str, Any]) -> None:
        half = some[0][0].dtype == torch.bfloat16
        weights = [weight.data.view(-1)[start:stop] for weight, start, stop in some]
        gradients = [weight.grad.reshape(-1)[start:stop] for weight, start, stop in some]  # type: ignore[union-attr]
        first, second, remainders = (
            [
                self.state[weight][name].view(-1)[start:stop]
                for weight, start, stop in some
                if name in self.state[weight]
            ]
            for name in ("exp_avg", "exp_avg_sq", "remainder")
        )
        masters, sizes = weights, [len(part) for part in weights]
        if half:
            joined = join(torch.cat(weights), torch.cat(remainders))
            masters = list(joined.split(sizes))
            gradients = list(torch.cat(gradients).float().split(sizes))
        adamw(
            masters,
            gradients,
            first,
            second,
            [],
            list(torch._foreach_add([self.state[weight]["step"] for weight, _, _ in some], 0.0)),  # copies
            fused=True,
            found_inf=self.found_inf,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        if half:
            rounded, remainder = take_apart(joined)
            torch._foreach_copy_(weights, list(rounded.split(sizes)))
            torch._foreach_copy_(remainders, list(remainder.split(sizes)))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which would make every state as wide as its weight; here each keeps the dtype it was saved in."""
        super().load_state_dict(state_dict)
        weights = list(chain.from_iterable(group["params"] for group in self.param_groups))
        for number, saved in state_dict["state"].items():
            weight = weights[number]
            self.state[weight] = {name: value.to(weight.device, copy=True) for name, value in saved.items()}


def join(weights: torch.Tensor, remainders: torch.Tensor) -> torch.Tensor:
    """(N,) bfloat16 weights and int16 remainders → (N,) float32 masters."""
    return ((weights.view(torch.int16).int() << 16) + remainders).view(torch.float32)


def take_apart(masters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,) float32 masters → (N,) bfloat16 weights, rounded to the nearest, and int16 remainders."""
    bits = masters.view(torch.int32)
    rounded = (bits + 0x8000) >> 16
    remainders = (bits - (rounded << 16)).short()
    return rounded.short().view(torch.bfloat16), remainders


def _slices(weights: Sequence[nn.Parameter]) -> Iterator[list[_Slice]]:
    """Cut weights into lists of slices of at most AT_ONCE numbers together."""
    some: list[_Slice] = []
    room = AT_ONCE
    for weight in weights:
        start, size = 0, weight.numel()
        while start < size:
            stop = min(size, start + room)
            some.append((weight, start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield some
                some, room = [], AT_ONCE
    if some:
        yield some
