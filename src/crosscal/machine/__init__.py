"""What this machine can do, and what a compression will take on it: devices, memory, disk, packages, and estimates."""

from crosscal.machine.estimates import Estimate, estimate, size
from crosscal.machine.facts import Machine, host_memory, this_machine

__all__ = ["Estimate", "Machine", "estimate", "host_memory", "size", "this_machine"]
