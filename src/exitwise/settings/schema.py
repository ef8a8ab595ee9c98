"""The settings of a training run: one flat schema, validated before anything else happens.

Settings stop here: the parts of the library take plain arguments. Needs no torch, so that mistakes show at once.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pydantic import ValidationError, create_model, model_validator

from exitwise.catalogue.axes import AXES, chosen_in, option_owners, options_of_others
from exitwise.catalogue.backbones import BACKBONE_EXITS
from exitwise.catalogue.lookup import find
from exitwise.catalogue.losses import implied_loss
from exitwise.catalogue.methods import METHODS, find_method, weigh_alone
from exitwise.catalogue.models import MODELS
from exitwise.catalogue.options import Options, Surroundings
from exitwise.catalogue.parts import Part
from exitwise.catalogue.sources import is_named
from exitwise.catalogue.trackers import TRACKERS
from exitwise.errors import UserError, near_match
from exitwise.settings.checks import check_device, check_network, check_shape, is_of_signals
from exitwise.settings.fields import AUGMENTED_PASSES, Fields
from exitwise.settings.ranges import fields_of
from exitwise.shown import Noun


class Settings(Fields):
    """Everything that a training run depends on; also consistent as a whole."""

    @property
    def exit_count(self) -> int:
        """Number of exits of the network."""
        if self.exits_at is not None:
            return len(self.exits_at) + 1
        return MODELS[self.model].exits if self.model in MODELS else self.exits or BACKBONE_EXITS

    @property
    def options(self) -> Options:
        """The options of the method; one from elsewhere is imported.

        Raises:
            UserError: if there is no such method, or it does not take ``method_options``.
        """
        if self.method in METHODS:
            return self.options_of("method")
        return options_from(find_method(self.method), self.method_options or {})

    def options_of(self, axis: str) -> Options:
        """Return the options of the part that is chosen on an axis."""
        part = AXES[axis].parts[getattr(self, axis)]
        return part.options(**{each.name: getattr(self, each.name) for each in fields(part.options)})

    @property
    def chosen(self) -> dict[str, str]:
        """The part that is chosen on each axis."""
        return chosen_in(vars(self))

    @property
    def kept_passes(self) -> int:
        """Passes over the training images of which features are kept."""
        return min(self.augmented_passes or AUGMENTED_PASSES, self.epochs) if self.is_augmented else 1

    @property
    def is_augmented(self) -> bool:
        """Return whether training sees an image otherwise in each epoch."""
        return (self.augment, self.policy, self.erase) != ("none", "none", 0)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what the network sees; signals are of height 1."""
        return len(self.mean), 1 if is_of_signals(self.data) else self.image_size, self.image_size

    @property
    def noun(self) -> Noun:
        """What samples of the data are called."""
        return "texts" if self.tokens is not None else "signals" if is_of_signals(self.data) else "images"

    def surroundings(self, processes: int = 1) -> Surroundings:
        """Return what the method meets in this run."""
        return Surroundings(
            self.exit_count, self.precision, self.compile, self.channels_last, processes, self.flow, self.epochs
        )

    def stated(self) -> dict[str, Any]:
        """Return all settings but the options of other parts than the chosen ones."""
        return self.model_dump(exclude=options_of_others(self.chosen))

    @model_validator(mode="before")
    @classmethod
    def _implied(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "loss" in values:
            return values
        loss = implied_loss(values, AXES["loss"].usual)
        if loss == "labels" and "distil" in values:  # 0, as files stated it before there was a choice of losses
            values = {key: value for key, value in values.items() if not key.startswith("distil")}
        return {**values, "loss": loss}

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        check_network(self.model)
        check_device(self.device)
        for name in self.track or ():
            find(TRACKERS, name, "tracker")
        if len(self.mean) not in (1, 3) or len(self.mean) != len(self.std):
            raise ValueError(f"mean and std need one or three values each; got {len(self.mean)} and {len(self.std)}")
        if self.method in METHODS and self.method_options is not None:
            raise ValueError(f"method_options are of methods from elsewhere; method is {self.method}")
        for name, owners in option_owners().items():
            part = self.chosen[owners.setting]
            stated = name in self.model_fields_set and getattr(self, name) is not None
            if stated and part not in owners.parts:
                raise ValueError(f"{name} is an option of {owners}; {owners.setting} is {part}")
        for axis in AXES:
            if getattr(self, axis) in AXES[axis].parts:
                self.options_of(axis).check(self.surroundings())
        if self.accumulate > 1 and not find_method(self.method).options.weighs_alone:
            raise ValueError(
                f"accumulate goes with method {', '.join(weigh_alone())}; got {self.method}, which weighs a half batch "
                "as one (several processes share a batch that does not fit)"
            )
        if self.clip is not None and find_method(self.method).options.looks_ahead:
            raise ValueError(f"clip changes the update that {self.method} looks ahead to; leave it out")
        if self.accumulate > 1 and self.sync_batchnorm:
            raise ValueError("accumulate and sync_batchnorm exclude one another; got both")
        if self.flow != "plain":
            self._check_flow()
        if self.tokens is not None:
            self._check_texts()
        if self.mixup or self.cutmix:
            self._check_mixing("mixup" if self.mixup else "cutmix")
        if self.handed_on != "nothing" and (self.regime == "heads" or self.refit_heads):
            other = "regime heads" if self.regime == "heads" else "refit_heads"
            raise ValueError(f"handed_on {self.handed_on} and {other}, which fits each head alone, exclude one another")
        if self.sync_batchnorm and self.compile:
            raise ValueError("sync_batchnorm cannot be compiled; leave out compile")
        if not is_backbone(self.model):
            given = [name for name in ("exits", "exits_at") if getattr(self, name) is not None]
            given += [
                name
                for name, usual in (("place_by", "macs"), ("skip", True), ("refit_heads", False))
                if getattr(self, name) != usual
            ]
            given += ["regime " + self.regime] if self.regime in ("heads", "mixed") else []
            if given or self.pretrained != "none":
                name = (given or ["pretrained"])[0]
                raise ValueError(
                    f"{name} is for backbones such as timm/resnet18; {self.model} has its own exits: leave "
                    f"{name} out, or name a backbone"
                )
        if self.exits is not None and self.exits_at is not None:
            raise ValueError(f"exits and exits_at exclude one another; got {self.exits} and {self.exits_at}")
        if self.place_by != "macs" and (self.exits_at is not None or not self.skip):
            other = "exits_at, which gives the places" if self.exits_at else "skip false, which saves no time"
            raise ValueError(f"place_by chooses places; got {self.place_by} with {other}")
        if self.regime == "heads" and self.pretrained == "none":
            raise ValueError("regime heads leaves the backbone as it is and needs pretrained weights; got none")
        if self.regime == "heads" and self.refit_heads:
            raise ValueError("refit_heads goes with other regimes; regime heads fits them all along")
        if self.regime != "heads" and not self.refit_heads:
            for name, usual in (("augmented_passes", None), ("keep_in", None), ("keep_as", "float32")):
                if getattr(self, name) != usual:
                    raise ValueError(f"{name} goes with regime heads or refit_heads; got regime {self.regime}")
        if self.regime == "heads" and self.layer_decay < 1:
            raise ValueError("layer_decay goes with other regimes; regime heads trains nothing below exits")
        if self.regime == "heads" and self.compile:
            raise ValueError("regime heads runs the backbone but once, which is not worth compiling; leave out compile")
        if self.regime == "heads" and self.distil_from is not None:
            raise ValueError("distil_from goes with other regimes; regime heads keeps features, not images to answer")
        if not self.is_augmented and (self.augmented_passes or 1) > 1:
            raise ValueError(f"augmented_passes are alike without augmentation; got {self.augmented_passes}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum above 0; got 0")
        if is_of_signals(self.data) and self.is_augmented:
            name = next(each for each in ("augment", "policy", "erase") if getattr(self, each) not in ("none", 0))
            raise ValueError(f"{name} is for images; {self.data} has signals (leave it out)")
        check_shape(self.data, len(self.mean), None if self.augment == "resize" else self.image_size)
        return self

    def _check_texts(self) -> None:
        if not self.model.startswith("hf/"):
            raise ValueError(f"texts (tokens {self.tokens}) are for hf/NAME, a network of texts; got {self.model}")
        if is_named(self.data):
            raise ValueError(f"texts (tokens {self.tokens}) are read from a table; got {self.data}")
        of_images = ("augment", "policy", "erase", "mixup", "cutmix", "channels_last", "distil_from")
        given = next((name for name in of_images if getattr(self, name) not in ("none", 0, None)), None)
        if given:
            raise ValueError(f"{given} is for images; the data are texts (leave it out)")

    def _check_mixing(self, name: str) -> None:
        if self.distil_from is not None:
            raise ValueError(f"{name} and distil_from exclude one another: the teacher answers images, not mixed ones")
        if self.regime == "heads":
            raise ValueError(f"{name} goes with other regimes; regime heads keeps features of images by themselves")
        if is_of_signals(self.data):
            raise ValueError(f"{name} is for images; {self.data} has signals (leave it out)")
        for axis in AXES:
            chosen = getattr(self, axis)
            if chosen in AXES[axis].parts and AXES[axis].parts[chosen].options.one_class:
                raise ValueError(f"{axis} {chosen} asks for the one class of each sample, which {name} leaves none")

    def _check_flow(self) -> None:
        others = "other flows than plain"
        if self.compile:
            raise ValueError(f"{others} cannot be compiled; got flow {self.flow}: leave out compile")
        if self.regime == "heads":
            raise ValueError(f"{others} go with other regimes; regime heads trains nothing below exits")
        if not self.skip:
            raise ValueError(f"{others} go with a backbone in stages; got flow {self.flow} and skip false")


def is_backbone(model: str) -> bool:
    """Return whether a model's name is that of a library's backbone, such as ``timm/resnet18``."""
    return "/" in model


MAY_CHANGE_ON_RESUME = frozenset(
    {
        "device",
        "track",
        "workers",
        "keep_in",
        "checkpoint_every",
        "keep_checkpoints",
        "data_root",
        "max_broken",
        "process_timeout",
    }
)
"""Settings that do not change what is computed."""


def resolve(*layers: Mapping[str, Any]) -> Settings:
    """Return settings from layers of plain values, later ones winning.

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
    """Return the first problem in one line: the setting, what it should be, and what came."""
    first = error.errors()[0]
    if not first["loc"]:
        return str(first["ctx"]["error"])
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"setting {where}: {message}; got {reprlib.repr(first['input'])}"


def options_from(part: Part, values: Mapping[str, Any]) -> Options:
    """Return the options of a part from plain values.

    Raises:
        UserError: for an option that it has not, or a value out of range.
    """
    known = fields_of(part.options)
    for key in values:
        if key not in known:
            raise UserError(f"unknown option {key!r} of {part.name}; {near_match(str(key), known)}")
    model: Any = create_model(part.options.__name__, **known)  # type: ignore[call-overload]
    try:
        return part.options(**model.model_validate(values).model_dump())
    except ValidationError as error:
        raise UserError(explain(error)) from error
