"""Named settings to train with. Variants derive from one another; the sources of constants stand beside them."""

from __future__ import annotations

from typing import Any

from exitwise.catalogue.entry import Entry
from exitwise.catalogue.lookup import by_name

Recipe = dict[str, Any]


def digits() -> Recipe:
    """bundled 8x8 digits: trains in under a minute on a laptop."""
    return {
        "data": "digits",
        "model": "msdnet_small",
        "image_size": 8,
        "mean": [0.3],
        "std": [0.38],
        "calibration_fraction": 0.2,
        "epochs": 10,
        "batch_size": 128,
        "lr": 0.1,
    }


def mnist1d() -> Recipe:
    """signals of 40 values, made by exitwise: to the plateau in less than a minute on a laptop, to compare methods."""
    return {
        "data": "mnist1d",
        "model": "wide_signals",
        "image_size": 40,
        "mean": [0.5],
        "std": [0.1],
        "calibration_fraction": 0.2,
        "epochs": 25,
        "batch_size": 256,
        "lr": 0.2,
        "weight_decay": 1e-3,
    }


def fashion_mnist() -> Recipe:
    """Fashion-MNIST, a wide shallow residual network with 4 exits: minutes on two CPU cores."""
    return {
        "data": "fashion_mnist",
        "model": "wide_grey",
        "image_size": 28,
        "mean": [0.286],
        "std": [0.353],
        "augment": "crop",
        "epochs": 12,
        "batch_size": 512,
        **_one_cycle(),
    }


def cifar10_msdnet5() -> Recipe:
    """CIFAR-10, MSDNet with 5 exits: 300 epochs at batch 1024 (Han et al., ECCV 2022), share-weighted objective."""
    return {
        "data": "cifar10",
        "model": "msdnet_cifar_5",
        "image_size": 32,
        "mean": [0.4914, 0.4822, 0.4465],
        "std": [0.2471, 0.2435, 0.2616],
        "augment": "crop",
        "epochs": 300,
        "batch_size": 1024,
        "lr": 0.8,
        "epsilon": 0.8,
        "centering": "exits",
    }


def cifar10_msdnet5_authors() -> Recipe:
    """cifar10_msdnet5 with the paper's meta objective and weight network."""
    return cifar10_msdnet5() | _authors()


def cifar10_fast() -> Recipe:
    """CIFAR-10, a wide shallow residual network with 4 exits: minutes on two CPU cores."""
    return cifar10_msdnet5() | {
        "model": "wide_cifar",
        "epochs": 12,
        "batch_size": 512,
        **_one_cycle(),
        "lr": 0.25,
        "exit_weights": [0.2, 0.3, 0.5, 1.0],
    }


def cifar10_narrow() -> Recipe:
    """CIFAR-10 on a network of 1.5M MACs, 250 batches of 256: minutes on a CPU, to compare methods with."""
    return cifar10_msdnet5() | {
        "model": "msdnet_cifar_narrow",
        "epochs": 2,
        "max_iterations": 250,
        "batch_size": 256,
        "lr": 0.2,
    }


def cifar100_msdnet5() -> Recipe:
    """CIFAR-100, MSDNet with 5 exits; otherwise as cifar10_msdnet5."""
    return cifar10_msdnet5() | {
        "data": "cifar100",
        "mean": [0.5071, 0.4865, 0.4409],
        "std": [0.2673, 0.2564, 0.2762],
    }


def cifar100_msdnet5_authors() -> Recipe:
    """cifar100_msdnet5 with the paper's meta objective and weight network."""
    return cifar100_msdnet5() | _authors()


def cifar100_msdnet5_imta() -> Recipe:
    """cifar100_msdnet5_authors with gradient equilibrium and distillation (IMTA), as the paper combines them."""
    return cifar100_msdnet5_authors() | {
        "flow": "equilibrium",
        "loss": "distil-last",
        "distil": 0.1,
        "distil_temperature": 1.0,
    }


def imagenet_msdnet_step4() -> Recipe:
    """ImageNet, MSDNet with 5 exits and step 4: 100 epochs at batch 4096 (Han et al., ECCV 2022); give --data."""
    return {
        "data": "",
        "model": "msdnet_imagenet_step4",
        "image_size": 224,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "augment": "resize",
        "calibration_fraction": 0.02,
        "epochs": 100,
        "batch_size": 4096,
        "lr": 0.8,
        "epsilon": 0.3,
        "centering": "all",
        "meta_interval": 100,
        "workers": 8,
        "checkpoint_every": 100,
    }


def imagenet_msdnet_step4_authors() -> Recipe:
    """imagenet_msdnet_step4 with the paper's meta objective and weight network."""
    return imagenet_msdnet_step4() | _authors()


def imagenet_msdnet_step6() -> Recipe:
    """ImageNet, step 6; otherwise as imagenet_msdnet_step4."""
    return imagenet_msdnet_step4() | {"model": "msdnet_imagenet_step6"}


def imagenet_msdnet_step6_authors() -> Recipe:
    """imagenet_msdnet_step6 with the paper's meta objective and weight network."""
    return imagenet_msdnet_step6() | _authors()


def imagenet_msdnet_step7() -> Recipe:
    """ImageNet, step 7; otherwise as imagenet_msdnet_step4."""
    return imagenet_msdnet_step4() | {"model": "msdnet_imagenet_step7"}


def imagenet_msdnet_step7_authors() -> Recipe:
    """imagenet_msdnet_step7 with the paper's meta objective and weight network."""
    return imagenet_msdnet_step7() | _authors()


def images() -> Recipe:
    """A folder of images of any size, seen at 64x64, trained from scratch: what `train --data FOLDER` uses."""
    return imagenet_msdnet_step4() | {
        "model": "msdnet_cifar_5",
        "image_size": 64,
        "calibration_fraction": 0.1,
        "epochs": 30,
        "batch_size": 64,
        "lr": 0.1,
        "epsilon": 0.8,
        "centering": "exits",
        "meta_interval": 1,
        "workers": 2,
        "checkpoint_every": None,
    }


def finetune() -> Recipe:
    """A pretrained backbone of timm, torchvision or Hugging Face with exits: what `train --model timm/NAME` uses."""
    return {
        "data": "",
        "model": "timm/resnet18",
        "pretrained": "hub",
        "image_size": 224,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "augment": "resize",
        "smallest_crop": 0.4,
        "epochs": 10,
        "batch_size": 128,
        "optimizer": "adamw",
        "lr": 1e-3,
        "weight_decay": 0.05,
        "label_smoothing": 0.1,
        "refit_heads": True,
        "workers": 2,
    }


def flowers_finetune() -> Recipe:
    """photos of 128x128 pixels, decoded once, EfficientNet-Lite0 with exits: minutes on two CPU cores; give --data."""
    return finetune() | {
        "model": "timm/tf_efficientnet_lite0",
        "image_size": 128,
        "augment": "crop",
        "calibration_fraction": 0.2,
        "epochs": 3,
        "batch_size": 64,
        "warmup": 0.2,
        "channels_last": True,
    }


def heads() -> Recipe:
    """finetune on a frozen backbone, whose features are kept: what `train --model timm/NAME --regime heads` uses."""
    return finetune() | {"regime": "heads", "refit_heads": False, "epochs": 40, "batch_size": 256, "lr": 3e-3}


def texts() -> Recipe:
    """A pretrained network of texts with exits: what `train --data TABLE --model hf/NAME` uses."""
    return finetune() | {
        "model": "hf/sentence-transformers/all-MiniLM-L6-v2",
        "tokens": 128,
        "augment": "none",
        "epochs": 3,
        "batch_size": 64,
        "lr": 2e-4,
        "weight_decay": 0.01,
        "label_smoothing": 0.0,
        "warmup": 0.1,
    }


def mails() -> Recipe:
    """a table of mails, wanted and unwanted (examples/mails.py), MiniLM with 4 exits; give --data."""
    return texts() | {"tokens": 64, "calibration_fraction": 0.2, "epochs": 2, "batch_size": 32}


def text_heads() -> Recipe:
    """texts on a frozen network, whose features are kept: with `--regime heads`."""
    return texts() | {"regime": "heads", "refit_heads": False, "epochs": 40, "batch_size": 256, "lr": 3e-3}


def _one_cycle() -> Recipe:
    """Return how wide, shallow networks learn fast: after the speed records of Page (2018) and Jordan (2024)."""
    return {
        "lr": 0.4,
        "warmup": 0.2,
        "nesterov": True,
        "weight_decay": 5e-4,
        "label_smoothing": 0.1,
        "channels_last": True,
    }


def _authors() -> Recipe:
    return {"method": "meta-weighted", "objective": "per-exit", "wpn_zero_init": False, "wpn_lr": 1e-4}


RECIPES = by_name(
    *(
        Entry(recipe.__name__, (recipe.__doc__ or "").strip(), f"{__name__}:{recipe.__name__}")
        for recipe in (
            digits,
            mnist1d,
            fashion_mnist,
            cifar10_msdnet5,
            cifar10_msdnet5_authors,
            cifar10_fast,
            cifar10_narrow,
            cifar100_msdnet5,
            cifar100_msdnet5_authors,
            cifar100_msdnet5_imta,
            imagenet_msdnet_step4,
            imagenet_msdnet_step4_authors,
            imagenet_msdnet_step6,
            imagenet_msdnet_step6_authors,
            imagenet_msdnet_step7,
            imagenet_msdnet_step7_authors,
            images,
            finetune,
            flowers_finetune,
            heads,
            texts,
            text_heads,
            mails,
        )
    )
)
