"""The table of devices."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mtvl.config import parse_section, read_yaml
from mtvl.errors import ConfigError, near_names

TABLE = Path(__file__).with_name("devices.yaml")


@dataclass(frozen=True)
class Device:
    """One device: memory (GiB), peak by precision (10^12 operations a second), links (10^9 bytes a second, one way)."""

    memory_gib: float
    tflops: dict[str, float]
    link_gb: float
    network_gb: float
    share: float
    reserve_gib: float

    def seconds(self, flops: float, precision: str) -> float:
        """Time of so many operations."""
        return flops / (self.tflops[precision] * 1e12 * self.share)


def load_device(name: str, precision: str) -> Device:
    """The entry `name`; ConfigError with near names when there is none, and where it does not compute in `precision`."""
    table = read_yaml(TABLE)
    if name not in table:
        raise ConfigError(f"unknown device {name!r}; {near_names(name, table)}; a line more in {TABLE} adds one")
    device = parse_section(Device, table[name], name)
    if precision not in device.tflops:
        raise ConfigError(
            f"{name} does not compute in {precision}, only in {', '.join(device.tflops)}; set train.precision and an "
            "engine file of that precision"
        )
    return device
