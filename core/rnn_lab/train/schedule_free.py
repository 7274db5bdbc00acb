"""Schedule-free AdamW whose step is two kernels that need no host: see kernels.updates.schedule_free_triton."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from schedulefree import AdamWScheduleFree
from torch import Tensor, nn

from rnn_lab.kernels.triton_support import refuses_triton


def refuses_fused(parameters: Iterable[nn.Parameter]) -> str | None:
    """Why these parameters need the library's own implementation, or None."""
    found = list(parameters)
    if any(p.dtype != torch.float32 for p in found):
        return "a parameter is not fp32"
    if not all(p.is_contiguous() and p.device == found[0].device for p in found):
        return "parameters are not contiguous on one device"
    return refuses_triton(*found)


class FusedScheduleFree(AdamWScheduleFree):  # type: ignore[misc]
    """`schedulefree.AdamWScheduleFree` in one launch for all parameters, its counters on the device.

    Same results, state and checkpoints as the library; `state_dict` fetches the counters into `param_groups`, which
    are stale between. The gradients are read, not overwritten. `train()` and `eval()` are the library's.
    """

    def __init__(self, params: Any, **kwargs: Any) -> None:
        super().__init__(params, **kwargs)
        from rnn_lab.kernels.updates import schedule_free_triton as kernels

        self._kernels = kernels
        groups = len(self.param_groups)
        device = self.param_groups[0]["params"][0].device
        self._counters = torch.zeros(kernels.COUNTERS, groups, dtype=torch.float64, device=device)
        self._settings = torch.zeros(kernels.SETTINGS, groups, dtype=torch.float64, device=device)
        self._coefficients = torch.zeros(kernels.COEFFICIENTS, groups, device=device)
        numels = [p.numel() for group in self.param_groups for p in group["params"]]
        chunks = [(row, i) for row, n in enumerate(numels) for i in range(math.ceil(n / kernels.CHUNK))]
        self._chunks = torch.tensor(chunks, dtype=torch.int32, device=device)
        self._tensors = torch.zeros(len(numels), kernels.COLUMNS, dtype=torch.int64, device=device)
        self._rows: list[list[int]] = []
        self._one, self._zero = torch.ones((), device=device), torch.zeros((), device=device)
        self.lr_factor: Tensor | None = None
        """What every rate is multiplied by, a scalar on the device; None: nothing."""
        self._peaks = torch.zeros(groups, dtype=torch.float64, device=device)
        self._upload()

    @property
    def lr_now(self) -> Tensor:
        """Rate of the last step, an fp64 scalar on the device."""
        return self._counters[3, 0]

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update from the gradients in place."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.gated_step(self._one, self._zero)
        return loss

    def gated_step(self, scale: Tensor, skip: Tensor) -> None:
        """One update from the gradients times `scale`; none at all, counters included, where `skip` is not 0.

        Both are fp32 scalars on the device. Inside the capture of a CUDA graph the addresses of the gradients are
        not read yet: call `bind` after it.
        """
        if not self.param_groups[0]["train_mode"]:
            raise RuntimeError("step() with evaluation weights: call train() on the optimizer first")
        if not (self._tensors.is_cuda and torch.cuda.is_current_stream_capturing()):
            self.bind()
        if self.lr_factor is not None:
            torch.mul(self._peaks, self.lr_factor, out=self._settings[0])
        self._kernels.advance(self._counters, self._settings, self._coefficients, skip)
        self._kernels.update(self._tensors, self._chunks, self._coefficients, scale, skip)

    @torch.no_grad()
    def bind(self) -> None:
        """Point the kernel at the parameters, gradients and state that exist now."""
        rows = [
            self._row(p, index) for index, group in enumerate(self.param_groups) for p in group["params"]
        ]  # fmt: skip
        if rows != self._rows:
            self._tensors.copy_(torch.tensor(rows, dtype=torch.int64))
            self._rows = rows

    def _row(self, p: nn.Parameter, group: int) -> list[int]:
        if p.grad is None:
            return [0] * self._kernels.COLUMNS
        state = self.state[p]
        if "z" not in state:
            state["z"] = torch.clone(p, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        grad = p.grad
        if grad.dtype != torch.float32 or not grad.is_contiguous():
            raise RuntimeError(f"a gradient is {grad.dtype} with strides {grad.stride()}: expected contiguous fp32")
        places = [t.data_ptr() for t in (p, grad, state["z"], state["exp_avg_sq"])]
        return [*places, p.numel(), group, int(all(place % 16 == 0 for place in places))]

    def state_dict(self) -> dict[str, Any]:
        """As the library's, the counters fetched from the device."""
        for group, (k, weight_sum, lr_max, lr) in zip(self.param_groups, self._counters.T.tolist(), strict=True):
            group.update(k=round(k), weight_sum=weight_sum, lr_max=lr_max, scheduled_lr=lr)
        found: dict[str, Any] = super().state_dict()
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state of this class or the library's.

        Raises:
            ValueError: it weights its average in a way that the kernel does not know.

        """
        super().load_state_dict(state_dict)
        self._upload()

    def _upload(self) -> None:
        """Settings and counters of the groups, to the device."""
        if any(group["r"] != 0 or group["weight_lr_power"] != 2 for group in self.param_groups):
            raise ValueError("the fused schedule-free AdamW knows r = 0 and weight_lr_power = 2 only")
        settings, counters = [], []
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            log2_beta2 = math.log2(beta2) if beta2 > 0 else -math.inf
            decay, warmup = group["weight_decay"], group["warmup_steps"]
            # Of a checkpoint of the library's, whose rate is set in its groups, the peak stands beside it.
            rate = group.get("peak_lr", group["lr"])
            settings.append([rate, beta1, beta2, log2_beta2, group["eps"], decay, warmup])
            counters.append([group[name] for name in ("k", "weight_sum", "lr_max", "scheduled_lr")])
        self._peaks.copy_(torch.tensor([row[0] for row in settings], dtype=torch.float64))
        self._settings.copy_(torch.tensor(settings, dtype=torch.float64).T)
        self._counters.copy_(torch.tensor(counters, dtype=torch.float64).T)
