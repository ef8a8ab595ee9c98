"""From settings to the parts of a training: preprocessing, data, network, method, optimizer."""

from __future__ import annotations

from typing import Any, cast

import torch

from exitwise.data import Preprocessing, Splits, load
from exitwise.errors import UserError
from exitwise.models import create_model
from exitwise.models.staged import Stage, StagedModel
from exitwise.settings.schema import Settings, is_backbone


def preprocessing_of(settings: Settings) -> Preprocessing:
    """Return what the settings say of images."""
    return Preprocessing(
        settings.image_size,
        tuple(settings.mean),
        tuple(settings.std),
        settings.augment,
        settings.interpolation,
        settings.crop,
        settings.smallest_crop,
    )


def load_splits(settings: Settings, *, max_broken: float = 1.0) -> Splits:
    """Return the data that the settings name; training limits the share of broken images, what comes after it does
    not."""
    return load(
        settings.data,
        preprocessing_of(settings),
        root=settings.data_root,
        calibration_fraction=settings.calibration_fraction,
        test_fraction=settings.test_fraction,
        seed=settings.split_seed,
        max_broken=max_broken,
    )


def build_model(settings: Settings, classes: int, *, pretrained: bool = False) -> StagedModel:
    """Return the network that the settings name, for that many classes; with its pretrained weights, if asked for."""
    options: dict[str, Any] = {
        "num_classes": classes,
        "input_shape": (len(settings.mean), settings.image_size, settings.image_size),
    }
    if is_backbone(settings.model):
        options |= {"exits": settings.exits, "at": settings.exits_at, "head": settings.head, "skip": settings.skip}
        if pretrained and settings.pretrained != "none":
            options["pretrained"] = settings.pretrained == "hub" or settings.pretrained
    model = create_model(settings.model, **options)
    if settings.regime == "heads":
        model.freeze_bodies()
    return model


def pick_device(name: str) -> torch.device:
    """Return the device of that name; ``auto`` is the GPU if there is one.

    Raises:
        UserError: if there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"expected a device of this machine, such as cpu or cuda; {name!r} is not available") from error
    return device


def build_optimizer(settings: Settings, model: StagedModel) -> torch.optim.Optimizer:
    """Return the network's optimizer that the settings name, over what is to be trained."""
    groups = _parameter_groups(settings, model)
    fused = next(model.parameters()).is_cuda  # so that a step is skipped without waiting for the GPU
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay, fused=fused)
    return torch.optim.SGD(
        groups,
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        fused=fused,
    )


def _parameter_groups(settings: Settings, model: StagedModel) -> list[dict[str, Any]]:
    """Return all parameters in one group, or those of the exits apart, where their learning rates differ."""
    trained = [param for param in model.parameters() if param.requires_grad]
    if settings.backbone_lr_factor == settings.head_lr_factor:
        return [{"params": trained, "lr": settings.lr * settings.head_lr_factor}]
    heads = {id(param) for stage in model.stages for param in cast("Stage", stage).head.parameters()}
    parts = (
        ([param for param in trained if id(param) not in heads], settings.backbone_lr_factor),
        ([param for param in trained if id(param) in heads], settings.head_lr_factor),
    )
    return [{"params": params, "lr": settings.lr * factor} for params, factor in parts if params]
