"""Formats that a calibrated run is exported to."""

from __future__ import annotations

from exitwise.catalogue.entry import Entry
from exitwise.catalogue.lookup import by_name

FORMATS = by_name(
    Entry("onnx", "a graph per stage, and one for single images", "exitwise.deploy.formats.onnx:export_onnx"),
    Entry("pt2", "a torch.export program per stage", "exitwise.deploy.formats.pt2:export_programs"),
)
