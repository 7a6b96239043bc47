"""What is measured on."""

import torch

import isonorm


def described(device):
    found = {"isonorm": isonorm.__version__, "torch": torch.__version__, "cuda": torch.version.cuda}
    if device == "cpu":
        return found | {"name": "the CPU"}
    about = torch.cuda.get_device_properties(0)
    sizes = {"memory": about.total_memory, "second_cache": about.L2_cache_size}
    return found | {"name": about.name, "processors": about.multi_processor_count} | sizes
