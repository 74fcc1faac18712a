"""The room that knows torch, Transformers and PEFT: policy, sampling, losses and their needs."""

import logging

# PEFT imports bitsandbytes, which on a CPU warns of kernels on the hub
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
