"""The room that knows torch, Transformers and PEFT: policy, sampling, losses and their needs."""

import logging

_log = logging.getLogger("bitsandbytes")  # PEFT imports it; on a CPU it warns of kernels on the hub
_level = _log.level
_log.setLevel(logging.ERROR)
import peft as peft  # noqa: E402

_log.setLevel(_level)
