"""What this machine can do, and what a compression will take on it: devices, memory, disk, packages, and estimates."""

from crosscal.machine.estimates import Estimate, duration, estimate, size
from crosscal.machine.facts import CORE, EXTRAS, Device, Disk, Machine, this_machine

__all__ = [
    "CORE",
    "EXTRAS",
    "Device",
    "Disk",
    "Estimate",
    "Machine",
    "duration",
    "estimate",
    "size",
    "this_machine",
]
