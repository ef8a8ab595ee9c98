"""What every benchmark shares: --json and --check, the record of machine and versions, and the bars."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Bar:
    """A figure and the limit it must keep."""

    name: str
    value: float
    limit: float
    at_most: bool = True
    unit: str = ""

    @property
    def met(self) -> bool:
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def __str__(self) -> str:
        sign = "<=" if self.at_most else ">="
        verdict = "ok" if self.met else "SHORT OF THE BAR"
        return f"{self.name}: {self.value:.3g}{self.unit} (bar {sign} {self.limit:g}{self.unit}) {verdict}"


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark takes."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--json", type=Path, metavar="FILE", help="write figures, machine and versions as JSON")
    result.add_argument("--check", action="store_true", help="exit 1 and name the bar that falls short")
    return result


def finish(options: argparse.Namespace, figures: dict, bars: list[Bar]) -> None:
    """Write the JSON file, print the bars (the last line is the last figure), and exit 1 if --check finds one short."""
    if options.json is not None:
        record = {"figures": figures, "bars": [str(bar) for bar in bars], "machine": machine(), "command": sys.argv}
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    for bar in bars:
        print(bar)
    if options.check and not all(bar.met for bar in bars):
        sys.exit(1)


def machine() -> dict:
    """Where and with what the figures were taken."""
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str | None:
    """Return name, family and model of the processor, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "model name" not in told:
        return None
    return f"{told['model name']}, family {told.get('cpu family')}, model {told.get('model')}"
