"""Data as disjoint train, calibration and test splits, and the batches of them."""

from exitwise.data.batches import TrainingBatches
from exitwise.data.splits import Split, Splits, load
from exitwise.data.transforms import Preprocessing

__all__ = ["Preprocessing", "Split", "Splits", "TrainingBatches", "load"]
