"""Whether fp16's scaler refused an update, without a host that waits for the device to say so."""

from __future__ import annotations

import torch


class Verdict:
    """The loss scale after an update, on its way from the device to the host.

    It has fallen exactly when the update was refused because of an overflow (`optimizer_step_was_skipped` misses it
    with a fused AdamW, https://github.com/huggingface/accelerate/issues/4242). Nothing needs to know before the next
    update; by then the answer has arrived, while the device works on the next window. `GradScaler.get_scale` would wait
    for all that the device was given.
    """

    def __init__(self, scaler: torch.amp.GradScaler) -> None:
        scale = scaler._get_scale_async()
        assert scale is not None  # a step has been made
        self._arrived: torch.cuda.Event | None = None
        if scale.is_cuda:
            self._scale = torch.empty_like(scale, device="cpu", pin_memory=True)
            self._scale.copy_(scale, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        else:
            self._scale = scale.clone()

    def scale(self) -> float:
        """The loss scale, once this update is done."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return float(self._scale)
