"""Find out whether fp16's scaler skipped an update, without making the host wait for the device."""

from __future__ import annotations

import torch


def overflow(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """Return a scalar on the device that is not 0 if the scaler skips the update; after `unscale_`, before `update`."""
    found: torch.Tensor
    (found,) = scaler._found_inf_per_device(optimizer).values()
    return found


class Verdict:
    """The loss scale after an update, copied from the device to the host asynchronously.

    It decreases exactly when the update was skipped because of an overflow (`optimizer_step_was_skipped` misses that
    with a fused AdamW, https://github.com/huggingface/accelerate/issues/4242). It is not needed before the next update,
    and by then the copy is done, while the device works on the next window. `GradScaler.get_scale` would wait for all
    work that is queued on the device.
    """

    def __init__(self, scaler: torch.amp.GradScaler) -> None:
        scale = scaler._get_scale_async()
        assert scale is not None  # the scaler has made a step
        self._arrived: torch.cuda.Event | None = None
        if scale.is_cuda:
            self._scale = torch.empty_like(scale, device="cpu", pin_memory=True)
            self._scale.copy_(scale, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        else:
            self._scale = scale.clone()

    def scale(self) -> float:
        """Return the loss scale; wait for the update if necessary."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return float(self._scale)
