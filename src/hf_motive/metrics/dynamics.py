"""Does enough move in a clip? VBench's dynamic degree from the flow of any network, to the letter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

#: Two frames (1, 3, H, W) in 0..255, H and W multiples of 8, to the flow (1, 2, H, W) between them, in pixels.
PairFlow = Callable[[Tensor, Tensor], Tensor]

_RATE = 8  # frames per second that are looked at
_SHARE = 0.05  # of the pixels: those that move most
_THRESHOLD = 6 / 256  # of the shorter side, from one frame that is looked at to the next


@torch.no_grad()
def is_dynamic(clip: Tensor, fps: float | None, network: PairFlow, device: torch.device | str = "cpu") -> bool:
    """Does enough move, in enough pairs of frames?

    About 8 frames a second are looked at. A pair counts when its strongest motion exceeds 6 pixels at a shorter side
    of 256; a clip is dynamic when a quarter as many pairs count as there are frames. That quarter is rounded as Python
    rounds, halves to the even number: of 6 frames 2 pairs, of 10 also 2, of 14 4. With two frames it is none, and any
    clip is dynamic; a single frame has no pair and never is.

    Args:
        clip: (F, 3, H, W) uint8.
        fps: Its frames per second.
        network: The optical flow of a pair. It is asked no more than the answer takes.
        device: Where frames are taken for it.

    Raises:
        ValueError: `fps` is None, the frames are of fewer than 20 pixels, or the flow is not finite or has another
            shape.
    """
    if fps is None:
        raise ValueError("dynamic degree looks at 8 frames a second, and this clip carries no rate: pass fps=")
    threshold = _THRESHOLD * min(clip.shape[-2:])
    frames = looked_at(clip, fps)
    needed = round(len(frames) / 4)
    count = 0
    for strength in strengths(frames, network, device):
        count += strength > threshold
        if count >= needed:
            return True
    return False


def looked_at(clip: Tensor, fps: float) -> Tensor:
    """Every k-th frame of (F, 3, H, W), from the first: k is a rate of 8, rounded (2.5 to 2), 1 or more."""
    return clip[:: max(1, round(fps / _RATE))]


def strengths(frames: Tensor, network: PairFlow, device: torch.device | str = "cpu") -> Iterator[float]:
    """The strongest motion of each pair of frames (F, 3, H, W) uint8, in pixels.

    Frames are padded to multiples of 8. VBench leaves the padding in the flow, and so does this.
    """
    for pair in pairwise(frames.split(1)):
        before, after = (padded(frame.to(device).float(), 8) for frame in pair)
        flow = network(before, after)
        if not isinstance(flow, Tensor):
            raise TypeError(
                f"the network gave a {type(flow).__name__}; expected the flow (1, 2, H, W) as a tensor: RAFT gives a "
                "flow an iteration, so pass a callable that returns the last of them, [-1]"
            )
        if flow.shape != (1, 2, *before.shape[-2:]):
            raise ValueError(
                f"the network gave a flow of {tuple(flow.shape)} for frames of {tuple(before.shape)}; "
                f"expected {(1, 2, *before.shape[-2:])}"
            )
        yield strongest(flow[0])


def strongest(flow: Tensor) -> float:
    """The mean length of the longest 5 % of the vectors of a flow (2, H, W), in pixels.

    Raises:
        ValueError: 5 % are not one vector, or the longest are not finite.
    """
    length = flow.float().square().sum(dim=0).sqrt().flatten()
    count = int(length.numel() * _SHARE)
    if count == 0:
        height, width = flow.shape[-2:]
        raise ValueError(f"frames of {height} x {width} are too small: dynamic degree takes 5 % of their pixels")
    strength = length.topk(count).values.double().mean().item()
    if not strength < float("inf"):
        raise ValueError("the flow holds NaN or infinite values")
    return strength


def padded(frames: Tensor, multiple: int) -> Tensor:
    """Frames (F, 3, H, W), their edges repeated until both sides are multiples: half before, the odd one after.

    Returns:
        (F, 3, H', W').
    """
    bottom, right = (-side % multiple for side in frames.shape[-2:])
    return F.pad(frames, (right // 2, right - right // 2, bottom // 2, bottom - bottom // 2), mode="replicate")
