"""Early-exit networks: trained with learned sample weights, calibrated for a compute budget, run for real.

Everything public is named here, once, and nothing else is API. A name is imported when it is first used, so that what
needs no torch starts without it.
"""

import ast
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from exitwise.catalogue.extras import needing_extras
from exitwise.version import __version__ as __version__

if TYPE_CHECKING:  # what type checkers see is also where __getattr__ finds each name
    from exitwise.advising.advice import Advice
    from exitwise.budgets import exit_proportions, proportions_for_macs
    from exitwise.catalogue.options import Options, option
    from exitwise.data import Preprocessing
    from exitwise.deploy.asked import Wishes
    from exitwise.deploy.calibration import Calibration
    from exitwise.deploy.monitor import DriftWarning, Monitor, Reference
    from exitwise.deploy.monitored import Monitored, read_monitored, write_monitored
    from exitwise.deploy.onnx_runner import OnnxResult, OnnxRunner
    from exitwise.deploy.predictions import Broken, Prediction, Predictions, Written
    from exitwise.deploy.recalibrating import calibrate_bundle
    from exitwise.deploy.sessions import share_threads
    from exitwise.deploy.split import DeviceHalf, ServerHalf, Split, SplitClient, split
    from exitwise.deploy.texts import Texts
    from exitwise.errors import DataError, ExitwiseWarning, UserError
    from exitwise.evaluation.outputs import collect_logits, collect_outputs
    from exitwise.exiting.calibration import calibrate_accuracy, calibrate_macs, calibrate_proportions
    from exitwise.exiting.measures import Measure, create_measure
    from exitwise.exiting.outputs import Outputs, anytime, budgeted_curve, operate
    from exitwise.exiting.point import OperatingPoint
    from exitwise.exiting.policy import ExitPolicy
    from exitwise.exiting.risk import control_risk
    from exitwise.exiting.runner import EarlyExitRunner, ExitResult
    from exitwise.exiting.search import ThresholdSearch
    from exitwise.exiting.temperatures import fit_temperatures
    from exitwise.methods import (
        GradientFlow,
        MetaWeighted,
        Method,
        SharedStep,
        Uniform,
        Weighting,
        create_flow,
        create_loss,
        create_method,
        list_methods,
    )
    from exitwise.models import MSDNet, RANet, Stage, StagedModel, count_cost, create_model, list_models
    from exitwise.models.authors import load_authors_checkpoint
    from exitwise.models.backbones.attach import add_exits, exit_points
    from exitwise.models.backbones.exited import ExitedModel
    from exitwise.models.backbones.saved import load, save
    from exitwise.processes.memory import keep_memory
    from exitwise.runs.folder import Run
    from exitwise.runs.records.bench import Bench
    from exitwise.runs.records.evaluation import Evaluation
    from exitwise.serving.on_ray import serve_app
    from exitwise.settings.compose import compose
    from exitwise.settings.schema import Settings
    from exitwise.studying.records import Study
    from exitwise.training.trainer import Trainer
    from exitwise.weighting.allocation import allocate, meta_loss
    from exitwise.weighting.gradient import MetaGradient, meta_gradient
    from exitwise.weighting.lookahead import look_ahead
    from exitwise.weighting.losses import Loss
    from exitwise.weighting.network import WeightNetwork
    from exitwise.weighting.normalize import weighted_loss
    from exitwise.weighting.passes import TrainPass, train_pass
    from exitwise.workflows.advise import advise
    from exitwise.workflows.bench import bench
    from exitwise.workflows.calibrate import calibrate
    from exitwise.workflows.cascade import cascade
    from exitwise.workflows.compare import MeasuresCompared, compare_measures
    from exitwise.workflows.evaluate import evaluate
    from exitwise.workflows.export import Exported, export
    from exitwise.workflows.fit import ExitsFitted, fit_exits
    from exitwise.workflows.predict import predict, predict_to
    from exitwise.workflows.push import Pushed, push
    from exitwise.workflows.report import report
    from exitwise.workflows.serve import serve
    from exitwise.workflows.study import study
    from exitwise.workflows.train import TrainingResult, train
    from exitwise.workflows.write_run import write_run


@cache
def _homes() -> dict[str, str]:
    """Return the module of each public name, as the imports above say."""
    source = __loader__.get_source(__name__)  # type: ignore[name-defined]
    return {
        alias.name: node.module
        for block in ast.parse(source).body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return __dir__()
    if name not in _homes():
        raise AttributeError(f"module 'exitwise' has no attribute {name!r}")
    with needing_extras(f"exitwise.{name}"):
        return getattr(import_module(_homes()[name]), name)


def __dir__() -> list[str]:
    return ["__version__", *_homes()]
