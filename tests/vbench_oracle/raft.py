"""The original RAFT, which VBench carries, against torchvision's, which `dynamic_degree` runs, with the same weights.

python -m tests.vbench_oracle.raft originals
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path

import torch

from hf_motive.metrics.dynamics import padded
from hf_motive.metrics.raft import raft

from .clips import CLIPS, draw
from .originals import import_vbench, unpack


def main(originals: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        unpack(originals, Path(folder))
        import_vbench(decode=False)
        from vbench.third_party.RAFT.core.raft import RAFT

        torch.manual_seed(0)
        theirs = RAFT(_Options(small=False, mixed_precision=False, alternate_corr=False)).eval()
        for buffer in theirs.buffers():  # running means and deviations that are not those of a new network
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
        file = Path(folder) / "raft.pth"
        torch.save(_renamed(theirs.state_dict()), file)
        frames = torch.from_numpy(draw(CLIPS["wide"])[:2]).permute(0, 3, 1, 2).float()[..., :203, :331]
        before, after = padded(frames, 8).split(1)
        with torch.no_grad():
            _, expected = theirs(before, after, iters=20, test_mode=True)
            found = raft(file, torch.device("cpu"))(before, after)
    difference = (found - expected).abs().max().item()
    print(json.dumps({"difference": difference, "longest": expected.norm(dim=1).max().item()}))


class _Options(dict):
    """In place of EasyDict."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


#: RAFT's names to torchvision's, one rule after the other.
_NAMES = (
    (r"^fnet\.", "feature_encoder."),
    (r"^cnet\.", "context_encoder."),
    (r"(layer\d\.\d)\.conv(\d)\.", r"\1.convnormrelu\2.0."),
    (r"(layer\d\.\d)\.norm(\d)\.", r"\1.convnormrelu\2.1."),
    (r"_encoder\.conv1\.", "_encoder.convnormrelu.0."),
    (r"_encoder\.norm1\.", "_encoder.convnormrelu.1."),
    (r"_encoder\.conv2\.", "_encoder.conv."),
    (r"\.encoder\.convc(\d)\.", r".motion_encoder.convcorr\1.0."),
    (r"\.encoder\.convf(\d)\.", r".motion_encoder.convflow\1.0."),
    (r"\.encoder\.conv\.", ".motion_encoder.conv.0."),
    (r"\.gru\.conv([zrq])(\d)\.", r".recurrent_block.convgru\2.conv\1."),
    (r"^update_block\.mask\.0\.", "mask_predictor.convrelu.0."),
    (r"^update_block\.mask\.2\.", "mask_predictor.conv."),
)


def _renamed(state: dict) -> dict:
    renamed = {}
    for name, value in state.items():
        if ".norm3." in name:  # a second name of a part of downsample
            continue
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


if __name__ == "__main__":
    main(Path(sys.argv[1]))
