"""An example with FSDP on CPUs, where Accelerate leaves its plugin for FSDP aside.

`accelerate launch --config_file examples/accelerate/fsdp.yaml tests/fsdp_on_cpu.py train.py ... --then ...` runs it
once for each part between `--then`. Nothing else is other than on GPUs: Accelerate's wrapping, checkpoints and
gathering are its own.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, DistributedType, PartialState

EXAMPLES = Path(__file__).parents[1] / "examples"

_init = AcceleratorState.__init__


def _init_sharded(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
    """As it does for processes with GPUs."""
    _init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        self.fsdp_plugin, self.distributed_type = fsdp_plugin, DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def main() -> None:
    AcceleratorState.__init__ = _init_sharded  # type: ignore[method-assign]
    example, arguments = EXAMPLES / sys.argv[1], sys.argv[2:]
    while arguments:
        end = arguments.index("--then") if "--then" in arguments else len(arguments)
        sys.argv = [str(example), *arguments[:end]]
        runpy.run_path(str(example), run_name="__main__")
        arguments = arguments[end + 1 :]


if __name__ == "__main__":
    main()
