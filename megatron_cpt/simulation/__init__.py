import os
import sys

import megatron_cpt.parallel  # noqa: F401  (the CPU platform, before the first import of megatron)

# To a simulating process no GPU is shown, and these packages' optimizers and layers run on nothing else.
if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
    for _package in ("transformer_engine", "apex"):
        sys.modules.setdefault(_package, None)  # type: ignore[arg-type]
