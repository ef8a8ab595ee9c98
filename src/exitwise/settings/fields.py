"""The settings one by one, each with its range: what the command line makes flags of.

Those of training methods are made from the methods' own options.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model
from pydantic_core import PydanticCustomError

from exitwise.catalogue.axes import AXES, option_owners
from exitwise.catalogue.lookup import summaries
from exitwise.catalogue.methods import DEFAULT, METHODS, is_method, method_names, weigh_alone
from exitwise.catalogue.sources import data_names
from exitwise.catalogue.trackers import TRACKERS
from exitwise.settings.ranges import Count, Finite, NotNegative, Numbers, Positive, Real, Seed, Share, Whole, fields_of

AUGMENTED_PASSES = 4


def _known_method(name: str) -> str:
    if not is_method(name):
        *others, last = (repr(each) for each in method_names())
        raise PydanticCustomError(
            "method", "Input should be {names}, or package.module:name", {"names": f"{', '.join(others)} or {last}"}
        )
    return name


class _DataAndModel(BaseModel):
    """Settings of the images and the network."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = Field("digits", description=f"{data_names()}.")
    data_root: str | None = Field(None, description="Where named data lies or is downloaded to.")
    image_size: Annotated[Whole, Field(ge=1, le=8192)] = Field(
        8, description="Side of the images that the network sees, in pixels; of signals, their length."
    )
    tokens: Annotated[Whole, Field(ge=1, le=10**6)] | None = Field(
        None, description="Data of texts: longer ones are cut after so many tokens. Unset: the data are images."
    )
    augment: Literal["none", "shift", "crop", "resize"] = Field(
        "none", description="Training augmentation; all but resize take images of image_size."
    )
    policy: Literal["none", "rand", "trivial", "auto", "augmix"] = Field(
        "none", description="Further training augmentation, image by image: RandAugment, TrivialAugment, ... ."
    )
    erase: Annotated[Real, Field(ge=0, le=1)] = Field(
        0.0, description="Share of the training images of which a random part is erased."
    )
    mixup: NotNegative = Field(
        0.0, description="Above 0: mix the images of a half batch in pairs, in shares from Beta(mixup, mixup)."
    )
    cutmix: NotNegative = Field(
        0.0, description="Above 0: put a part of one image into another, of a share from Beta(cutmix, cutmix)."
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
    imbalance: Annotated[Real, Field(gt=0, le=1)] = Field(
        1.0,
        description="Below 1: training images made long-tailed, the last class with that share of the first's images.",
    )
    split_seed: Seed = Field(0, description="Seed of the choice of held-out images.")
    max_broken: Annotated[Real, Field(ge=0, le=1)] = Field(
        0.01,
        description="Share of the image files that may be broken; they are skipped and listed. More stop training.",
    )

    model: str = Field(
        "msdnet_small", description="A name that `exitwise models` lists, or timm/NAME, torchvision/NAME or hf/NAME."
    )
    exits: Annotated[Whole, Field(ge=1, le=1000)] | None = Field(
        None,
        description="Number of exits on such a backbone, its own classifier included; 4 if unset, 1 for none else.",
    )
    exits_at: Numbers[str] | None = Field(
        None, description="Modules to put the early exits after (`exitwise models --exits NAME` lists them)."
    )
    place_by: Literal["macs", "latency"] = Field(
        "macs",
        description="Else they are put at equal shares of this: multiply-accumulates, or the time of one image on this "
        "machine's CPU, measured when the run begins.",
    )
    skip: bool = Field(True, description="Cut the backbone into stages; if false, all exits run, saving nothing.")
    head: Literal["auto", "linear"] = Field("auto", description="Kind of those exits.")
    pretrained: str = Field(
        "none", description="A backbone's first weights: hub, none, a file of weights, or another run."
    )
    refit_heads: bool = Field(
        False,
        description="Other regimes: at the end, fit a backbone's early exits anew, partly to the last one's answers.",
    )
    augmented_passes: Count | None = Field(
        None,
        description="Regime heads and refit_heads: passes over the augmented images whose features are kept, for "
        f"epochs to take in turn; {AUGMENTED_PASSES} if unset, 1 without augmentation. As many as epochs: new in each.",
    )
    keep_in: str | None = Field(
        None, description="Folder for such features beyond 2 GiB; the system's temporary one if unset."
    )
    keep_as: Literal["float32", "float16"] = Field("float32", description="What they are kept as.")
    backbone_lr_factor: Positive = Field(1.0, description="Learning rate of all but the exits, as a multiple of lr.")
    head_lr_factor: Positive = Field(1.0, description="Learning rate of the exits, as a multiple of lr.")


def _method_fields() -> dict[str, Any]:
    """Return the settings that say how a network learns, axis by axis, each with the options of its parts in turn."""
    owners = option_owners()
    made: dict[str, Any] = {}
    for setting, axis in AXES.items():
        choices: Any = Literal[tuple(axis.parts)]
        made[setting] = choices, Field(axis.usual, description=f"{axis.title.capitalize()}: {summaries(axis.parts)}")
        made |= {name: field for part in axis.parts.values() for name, field in fields_of(part.options, owners).items()}
    made["method"] = (
        Annotated[str, AfterValidator(_known_method)],
        Field(DEFAULT, description=f"Training method: {', '.join(METHODS)}; or package.module:name."),
    )
    made["method_options"] = (
        dict[str, Any] | None,
        Field(None, description="Options of a method from elsewhere, by name."),
    )
    return made


_WithMethod: Any = create_model("_WithMethod", __base__=_DataAndModel, **_method_fields())


class Fields(_WithMethod):
    """All settings, in the order of ``config.yaml``."""

    if TYPE_CHECKING:
        method: str
        flow: str
        loss: str
        regime: str
        handed_on: str
        distil_from: str | None
        method_options: dict[str, Any] | None

    epochs: Count = Field(60, description="Passes over the training images.")
    max_iterations: Count | None = Field(None, description="End after so many loaded batches, schedule included.")
    batch_size: Annotated[Whole, Field(ge=4, le=10**9)] = Field(
        128, description="Images per loaded batch; trained on in halves."
    )
    accumulate: Count = Field(
        1,
        description="Passes over parts of each half batch, for batches that do not fit; with method "
        f"{', '.join(weigh_alone())}.",
    )
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="Optimizer of the network.")
    lr: Positive = Field(0.1, description="Its highest learning rate, that at the start without warmup.")
    lr_schedule: Literal["cosine", "linear", "step", "constant"] = Field(
        "cosine", description="How it falls: to 0, or to a tenth after half and after three quarters; or not at all."
    )
    warmup: Annotated[Real, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of the training in which the learning rate rises from 0 in a straight line (one-cycle)."
    )
    momentum: Annotated[Real, Field(ge=0, lt=1)] = Field(0.9, description="SGD's momentum.")
    nesterov: bool = Field(False, description="SGD with Nesterov momentum.")
    weight_decay: NotNegative = Field(1e-4, description="Weight decay of the network.")
    decay_vectors: bool = Field(True, description="Weight decay of biases and norms, the tensors of one axis, too.")
    layer_decay: Annotated[Real, Field(gt=0, le=1)] = Field(
        1.0, description="Below 1: learning rate of each layer below the exits, as a multiple of that of the next."
    )
    patience: Count | None = Field(
        None, description="End after so many epochs without a better mean accuracy of the exits on calibration images."
    )
    label_smoothing: Annotated[Real, Field(ge=0, lt=1)] = Field(0.0, description="Of the training and meta losses.")
    clip: Positive | None = Field(None, description="Largest norm of the gradient; larger ones are scaled down to it.")
    ema: Annotated[Real, Field(ge=0, lt=1)] = Field(
        0.0,
        description="Above 0: keep a running average of the weights, of which each batch keeps that share at most.",
    )
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

    track: Numbers[str] | None = Field(
        None, description=f"Tools that are told how training goes: {', '.join(TRACKERS)}."
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
