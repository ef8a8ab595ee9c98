"""Early-exit networks: trained with learned sample weights, calibrated for a compute budget, run for real.

Everything public is named here and nowhere else. Names are imported when first used, so that the parts that
need no torch start without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from exitwise.version import __version__

if TYPE_CHECKING:
    from exitwise.budgets import exit_proportions, proportions_for_macs
    from exitwise.deploy.monitor import Monitor
    from exitwise.evaluation.outputs import Outputs, anytime, budgeted_curve, collect_outputs, operate
    from exitwise.exiting.calibration import calibrate_macs, calibrate_proportions
    from exitwise.exiting.confidence import Confidence, fit_temperatures
    from exitwise.exiting.policy import ExitPolicy
    from exitwise.exiting.risk import control_risk
    from exitwise.exiting.runner import EarlyExitRunner, ExitResult
    from exitwise.exiting.search import ThresholdSearch
    from exitwise.methods import MetaWeighted, Uniform, create_method, list_methods
    from exitwise.models import MSDNet, RANet, Stage, StagedModel, count_cost, create_model, list_models
    from exitwise.models.authors import load_authors_checkpoint
    from exitwise.models.backbones.attach import add_exits, exit_points
    from exitwise.weighting.allocation import allocate, meta_loss
    from exitwise.weighting.gradient import meta_gradient, train_pass
    from exitwise.weighting.lookahead import look_ahead
    from exitwise.weighting.network import WeightNetwork
    from exitwise.weighting.normalize import weighted_loss

_HOME = {
    "exitwise.evaluation.outputs": ("Outputs", "anytime", "budgeted_curve", "collect_outputs", "operate"),
    "exitwise.exiting.calibration": ("calibrate_macs", "calibrate_proportions"),
    "exitwise.exiting.confidence": ("Confidence", "fit_temperatures"),
    "exitwise.exiting.policy": ("ExitPolicy",),
    "exitwise.exiting.risk": ("control_risk",),
    "exitwise.exiting.search": ("ThresholdSearch",),
    "exitwise.exiting.runner": ("EarlyExitRunner", "ExitResult"),
    "exitwise.methods": ("MetaWeighted", "Uniform", "create_method", "list_methods"),
    "exitwise.models": ("MSDNet", "RANet", "Stage", "StagedModel", "count_cost", "create_model", "list_models"),
    "exitwise.models.backbones.attach": ("add_exits", "exit_points"),
    "exitwise.deploy.monitor": ("Monitor",),
    "exitwise.models.authors": ("load_authors_checkpoint",),
    "exitwise.budgets": ("exit_proportions", "proportions_for_macs"),
    "exitwise.weighting.allocation": ("allocate", "meta_loss"),
    "exitwise.weighting.gradient": ("meta_gradient", "train_pass"),
    "exitwise.weighting.lookahead": ("look_ahead",),
    "exitwise.weighting.network": ("WeightNetwork",),
    "exitwise.weighting.normalize": ("weighted_loss",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'exitwise' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
