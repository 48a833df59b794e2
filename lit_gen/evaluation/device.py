"""The device that a measurement names."""

import torch


def device_name(device: torch.device, world_size: int = 1) -> str:
    """Return the name of the device that numbers are measured on, with the number of processes if there are several."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return name if world_size == 1 else f"{world_size} x {name}"
