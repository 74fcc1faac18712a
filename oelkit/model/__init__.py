"""Everything built on torch, Transformers and PEFT: policy, sampling, losses, memory plan."""

import logging

# PEFT imports bitsandbytes, which warns about hub kernels on a CPU
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
