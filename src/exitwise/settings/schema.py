"""The settings of a training run: one flat schema, validated before anything else happens.

Settings stop here: the parts of the library take plain arguments. Needs no torch, so that mistakes show at once.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from exitwise.budgets import MOST, check_count
from exitwise.errors import UserError, near_match
from exitwise.settings.checks import BACKBONE_EXITS, NETWORKS, check_device, check_network, check_shape


def _no_boolean(value: Any) -> Any:
    """Python takes ``true`` for 1; here it is a mistake."""
    if isinstance(value, bool):
        raise PydanticCustomError("number", "Input should be a number")
    return value


def _within_float32(value: float) -> float:
    if MOST < abs(value) < float("inf"):
        raise PydanticCustomError("number", f"Input should be a number from {-MOST:g} to {MOST:g}")
    return value


Real = Annotated[float, BeforeValidator(_no_boolean), AfterValidator(_within_float32)]
Whole = Annotated[int, BeforeValidator(_no_boolean)]
Positive = Annotated[Real, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[Real, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[Real, Field(allow_inf_nan=False)]
Count = Annotated[Whole, Field(ge=1, le=10**9)]
Share = Annotated[Real, Field(gt=0, lt=1)]
Seed = Annotated[Whole, Field(ge=0, lt=2**63)]


def _split_commas(value: Any) -> Any:
    """``["0.5,0.5"]``, as a command line gives it, to its parts."""
    if isinstance(value, list):
        return [part for item in value for part in (item.split(",") if isinstance(item, str) else [item])]
    return value


Number = TypeVar("Number")
Numbers = Annotated[list[Number], BeforeValidator(_split_commas)]


class Fields(BaseModel):
    """The settings one by one, each with its range; what the command line makes flags of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = Field("digits", description="digits, cifar10, cifar100, or a folder of images.")
    data_root: str | None = Field(None, description="Where CIFAR lies or is downloaded to.")
    image_size: Annotated[Whole, Field(ge=1, le=8192)] = Field(
        8, description="Side of the images that the network sees, in pixels."
    )
    augment: Literal["none", "shift", "crop", "resize"] = Field(
        "none", description="Training augmentation; all but resize take images of image_size."
    )
    mean: Numbers[Finite] = Field([0.5], description="Mean per channel (one or three) of pixels in [0, 1].")
    std: Numbers[Positive] = Field([0.5], description="Standard deviation per channel.")
    interpolation: Literal["bilinear", "bicubic", "nearest"] = Field("bilinear", description="How images are resized.")
    crop: Annotated[Real, Field(gt=0, le=1)] = Field(
        0.875, description="With augment resize: share of the resized image that the centre crop keeps at evaluation."
    )
    smallest_crop: Annotated[Real, Field(gt=0, le=1)] = Field(
        0.08, description="With augment resize: least share of an image's area that a random crop in training keeps."
    )
    calibration_fraction: Share = Field(0.1, description="Share of the training images held out for calibration.")
    test_fraction: Share = Field(0.2, description="Share held out for testing, where the data has no test images.")
    split_seed: Seed = Field(0, description="Seed of the choice of held-out images.")
    max_broken: Annotated[Real, Field(ge=0, le=1)] = Field(
        0.01,
        description="Share of the image files that may be broken; they are skipped and listed. More stop training.",
    )

    model: str = Field(
        "msdnet_small", description="A name that `exitwise models` lists, or timm/NAME, torchvision/NAME or hf/NAME."
    )
    exits: Annotated[Whole, Field(ge=2, le=1000)] | None = Field(
        None, description="Number of exits on such a backbone, its own classifier included; 4 if unset."
    )
    exits_at: Numbers[str] | None = Field(
        None, description="Modules to put the early exits after (`exitwise models --exits NAME` lists them)."
    )
    skip: bool = Field(True, description="Cut the backbone into stages; if false, all exits run, saving nothing.")
    head: Literal["auto", "linear"] = Field("auto", description="Kind of those exits.")
    pretrained: str = Field("none", description="A backbone's first weights: hub, none, or a file of weights.")
    regime: Literal["joint", "heads", "mixed"] = Field(
        "joint", description="joint: all at once; heads: on a frozen backbone; mixed: the backbone alone first."
    )
    backbone_epochs: Count | None = Field(None, description="Regime mixed: epochs of the backbone alone.")
    backbone_lr_factor: Positive = Field(1.0, description="Learning rate of all but the exits, as a multiple of lr.")
    head_lr_factor: Positive = Field(1.0, description="Learning rate of the exits, as a multiple of lr.")

    method: Literal["uniform", "meta-weighted", "meta-weighted-shared"] = Field(
        "meta-weighted", description="Training method."
    )
    exit_weights: Numbers[NotNegative] | None = Field(
        None, description="uniform: the weight of each exit, all 1 if unset."
    )
    p: Positive = Field(0.75, description="Budget to train for: share k of exits is p^k, normalised.")
    proportions: Numbers[NotNegative] | None = Field(None, description="Budget to train for as shares; overrides p.")
    p_range: Numbers[Positive] | None = Field(
        None, description="LOW HIGH: draw p anew for each meta step, uniformly between them; overrides p."
    )
    objective: Literal["share-weighted", "per-exit"] = Field("share-weighted", description="Meta objective.")
    gradient: Literal["forward", "double-backward", "finite-difference"] = Field(
        "forward", description="How the meta-gradient is computed."
    )
    epsilon: NotNegative = Field(0.8, description="Scale of the sample weights: within 1 +- 2 epsilon.")
    centering: Literal["exits", "samples", "all"] = Field(
        "exits", description="The set over which weights average to 1."
    )
    meta_interval: Count = Field(1, description="Update the weight network every so many loaded batches.")
    wpn_input: Literal["loss", "conf", "both"] = Field("loss", description="What the weight network sees.")
    wpn_hidden: Annotated[Whole, Field(ge=1, le=65536)] = Field(500, description="Width of its hidden layers.")
    wpn_layers: Annotated[Whole, Field(ge=1, le=100)] = Field(1, description="Number of its hidden layers.")
    wpn_zero_init: bool = Field(True, description="Start with all weights at exactly 1.")
    wpn_lr: Positive = Field(1e-3, description="Learning rate of the weight network (Adam).")
    wpn_weight_decay: NotNegative = Field(1e-4, description="Weight decay of the weight network.")

    epochs: Count = Field(60, description="Passes over the training images.")
    max_iterations: Count | None = Field(None, description="End after so many loaded batches, schedule included.")
    batch_size: Annotated[Whole, Field(ge=4, le=10**9)] = Field(
        128, description="Images per loaded batch; trained on in halves."
    )
    accumulate: Count = Field(
        1, description="Passes over parts of each half batch, for batches that do not fit; with method uniform."
    )
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="Optimizer of the network.")
    lr: Positive = Field(0.1, description="Its learning rate at the start; cosine to 0.")
    momentum: Annotated[Real, Field(ge=0, lt=1)] = Field(0.9, description="SGD's momentum.")
    nesterov: bool = Field(False, description="SGD with Nesterov momentum.")
    weight_decay: NotNegative = Field(1e-4, description="Weight decay of the network.")
    label_smoothing: Annotated[Real, Field(ge=0, lt=1)] = Field(0.0, description="Of the training and meta losses.")
    seed: Seed = Field(0, description="Seed of initial weights, data order and augmentation.")

    allocation: Literal["local", "global"] = Field(
        "local", description="Several processes: allocate meta samples and centre weights per process, or over all."
    )
    sync_batchnorm: bool = Field(
        False, description="Several processes: BatchNorm statistics over the images of all of them."
    )
    process_timeout: Positive = Field(
        300.0, description="Several processes: seconds within which the job ends when one does not answer."
    )

    device: str = Field("auto", description="auto (a GPU if there is one), cpu, cuda, cuda:1, ...")
    channels_last: bool = Field(False, description="Keep images and network in channels-last format.")
    precision: Literal["float32", "tf32", "bf16"] = Field(
        "float32", description="Of the network's passes: tf32 on a GPU, bf16 by autocast; the rest stays in float32."
    )
    compile: bool = Field(False, description="torch.compile the network's passes; minutes at the start.")
    workers: Annotated[Whole, Field(ge=0, le=1000)] = Field(0, description="Processes that load and augment images.")
    checkpoint_every: Count | None = Field(
        None, description="Loaded batches between checkpoints; at the latest, one is made every 5 minutes."
    )
    keep_checkpoints: Count = Field(
        2, description="Checkpoints to keep to resume from, besides that of the best epoch."
    )


class Settings(Fields):
    """Everything that a training run depends on; also consistent as a whole."""

    @property
    def exit_count(self) -> int:
        """Number of exits of the network."""
        if self.exits_at is not None:
            return len(self.exits_at) + 1
        return NETWORKS.get(self.model) or self.exits or BACKBONE_EXITS

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        check_network(self.model)
        check_device(self.device)
        if len(self.mean) not in (1, 3) or len(self.mean) != len(self.std):
            raise ValueError(f"mean and std need one or three values each; got {len(self.mean)} and {len(self.std)}")
        if self.proportions is not None and abs(sum(self.proportions) - 1) > 1e-6:
            raise ValueError(
                f"proportions must sum to 1; got {self.proportions}, which sum to {sum(self.proportions):.6g}"
            )
        if self.p_range is not None and (len(self.p_range) != 2 or self.p_range[0] > self.p_range[1]):
            raise ValueError(f"p_range needs two numbers, the lower first; got {self.p_range}")
        if self.p_range is not None and self.proportions is not None:
            raise ValueError("p_range and proportions exclude one another; got both")
        if self.gradient != "forward" and self.method != "uniform":
            alternative = "use gradient forward, or leave it out"
            if self.precision != "float32" and self.gradient == "finite-difference":
                raise ValueError(f"precision {self.precision} drowns a finite difference in rounding; {alternative}")
            if self.compile and self.gradient == "double-backward":
                raise ValueError(f"compile cannot be differentiated twice (gradient double-backward); {alternative}")
            if self.channels_last and self.gradient == "double-backward":
                raise ValueError(f"channels_last cannot be differentiated twice (double-backward); {alternative}")
        if self.accumulate > 1 and self.method != "uniform":
            raise ValueError(
                f"accumulate goes with method uniform; got {self.method}, which weighs a half batch as one (several "
                "processes share a batch that does not fit)"
            )
        if self.accumulate > 1 and self.sync_batchnorm:
            raise ValueError("accumulate and sync_batchnorm exclude one another; got both")
        if self.sync_batchnorm and self.compile:
            raise ValueError("sync_batchnorm cannot be compiled; leave out compile")
        if not is_backbone(self.model):
            given = [name for name in ("exits", "exits_at") if getattr(self, name) is not None]
            given += [name for name, usual in (("regime", "joint"), ("skip", True)) if getattr(self, name) != usual]
            if given or self.pretrained != "none":
                name = (given or ["pretrained"])[0]
                raise ValueError(f"{name} is for backbones such as timm/resnet18; {self.model} has its own exits")
        if self.exits is not None and self.exits_at is not None:
            raise ValueError(f"exits and exits_at exclude one another; got {self.exits} and {self.exits_at}")
        if self.regime == "mixed" and self.backbone_epochs is None:
            raise ValueError("regime mixed needs backbone_epochs, how long the backbone trains alone; got none")
        if self.regime != "mixed" and self.backbone_epochs is not None:
            raise ValueError(f"backbone_epochs goes with regime mixed; got regime {self.regime}")
        if self.regime == "heads" and self.pretrained == "none":
            raise ValueError("regime heads leaves the backbone as it is and needs pretrained weights; got none")
        if self.backbone_epochs is not None and self.backbone_epochs >= self.epochs:
            raise ValueError(f"backbone_epochs must be below epochs ({self.epochs}); got {self.backbone_epochs}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum above 0; got 0")
        check_count("exit proportions", self.proportions, self.exit_count)
        check_count("exit_weights", self.exit_weights, self.exit_count)
        check_shape(self.data, len(self.mean), None if self.augment == "resize" else self.image_size)
        return self


def is_backbone(model: str) -> bool:
    """Whether a model's name is that of a library's backbone, such as ``timm/resnet18``."""
    return "/" in model


MAY_CHANGE_ON_RESUME = frozenset(
    {"device", "workers", "checkpoint_every", "keep_checkpoints", "data_root", "max_broken", "process_timeout"}
)
"""Settings that do not change what is computed."""


def resolve(*layers: Mapping[str, Any]) -> Settings:
    """Settings from layers of plain values, later ones winning.

    Raises:
        UserError: for an unknown key (with the nearest known one) or a value out of range.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged.update(layer)
    check_values(merged)
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise UserError(explain(error)) from error


def check_values(values: Mapping[Any, Any]) -> None:
    """Raise UserError for an unknown key (with the nearest known one) or a value out of range, whatever the others."""
    for key in values:
        if key not in Settings.model_fields:
            raise UserError(f"unknown setting {key!r}; {near_match(str(key), Settings.model_fields)}")
    try:
        Fields.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error)) from error


def explain(error: ValidationError) -> str:
    """The first problem in one line: the setting, what it should be, and what came."""
    first = error.errors()[0]
    if not first["loc"]:
        return str(first["ctx"]["error"])
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"setting {where}: {message}; got {reprlib.repr(first['input'])}"


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Settings from a YAML file.

    Raises:
        UserError: if there is no such file, or it is no mapping of settings.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"expected a YAML file of settings; found none at {path}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"expected YAML in {path}; {line}{error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"expected YAML in {path}; {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise UserError(f"expected 'key: value' lines in {path}; got values within values without end") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"expected settings as 'key: value' lines in {path}; got a {type(content).__name__}")
    try:
        check_values({key: value for key, value in content.items() if key != "recipe"})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return content


class _Loader(yaml.SafeLoader):
    """YAML of plain values, without Python objects, in which a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(None, None, "expected a name as key", key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def to_yaml(settings: Settings) -> str:
    """All settings as YAML, in the schema's order."""
    return yaml.safe_dump(settings.model_dump(), sort_keys=False, default_flow_style=None)
