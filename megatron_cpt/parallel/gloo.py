"""The same gloo devices for all groups of a process.

torch gives every group a device, whose thread wakes a hundred times a second whether or not there is anything to do.
Megatron-Core makes some twenty groups, on one process as on many: beside 23 of them 400 products of 512 x 512 matrices
took 580 ms, beside as many that share a device 556 ms (AMD EPYC, 2 cores).
"""

import os
from datetime import timedelta

from torch.distributed import ProcessGroupGloo, Store, distributed_c10d


def share_devices() -> None:
    """Has all gloo groups that torch makes in this process from now on use the same devices."""
    devices = open_devices()

    class OnSharedDevices(ProcessGroupGloo):
        """Made as torch makes a group: by store, rank, size and timeout."""

        def __init__(self, store: Store, rank: int, size: int, timeout: timedelta) -> None:
            options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
            options._devices, options._threads = devices, 2 * len(devices)
            options._timeout = timeout
            super().__init__(store, rank, size, options)

    distributed_c10d.ProcessGroupGloo = OnSharedDevices  # type: ignore[misc]


def open_devices() -> list[ProcessGroupGloo.Device]:
    """Those that torch would open: of the interfaces that GLOO_SOCKET_IFNAME lists, else of the host's name."""
    interfaces = os.environ.get("GLOO_SOCKET_IFNAME")
    if not interfaces:
        return [ProcessGroupGloo.create_default_device()]
    return [ProcessGroupGloo.create_device(interface=interface) for interface in interfaces.split(",")]
