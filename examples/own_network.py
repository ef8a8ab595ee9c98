"""Exits on a network that is trained already, from a loader to a deployed bundle in six calls.

    python examples/own_network.py --photos DIR --weights FILE

DIR has a folder of images per class, FILE the weights of timm's tf_efficientnet_lite0. First the network is fine-tuned
by a plain loop, which knows nothing of exits: it stands for the training stack that you have. Of each class a fifth of
the images tests, and a tenth of the others is held out for calibration.
"""

import argparse
import time

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import exitwise as ew

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--photos", required=True, help="a folder of images per class")
parser.add_argument("--model", default="tf_efficientnet_lite0", help="of timm")
parser.add_argument("--weights", help="its weights, a safetensors file; random ones if not given")
parser.add_argument("--tuned", help="weights that an earlier call wrote with --keep, in place of fine-tuning")
parser.add_argument("--keep", help="where to write the fine-tuned weights")
parser.add_argument("--image-size", type=int, default=128)
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--out", default="own.bundle", help="folder of the bundle")
parser.add_argument("--seconds", type=float, default=60.0, help="about how long to measure times")
options = parser.parse_args()
torch.manual_seed(0)
ew.keep_memory()  # on a CPU training spends up to a third of its time on having freed memory cleared again

# What you have: images, loaders, a network, a training loop.
size, mean, std = options.image_size, [0.5] * 3, [0.5] * 3
to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
crop = [v2.RandomResizedCrop(size, scale=(0.4, 1)), v2.RandomHorizontalFlip()]
augmented = ImageFolder(options.photos, v2.Compose([*crop, *to_tensor]))
centre = [v2.Resize(round(size / 0.875)), v2.CenterCrop(size)]
plain = ImageFolder(options.photos, v2.Compose([*centre, *to_tensor]))
parts: dict[str, list[int]] = {"test": [], "held out": [], "train": []}
for label in range(len(plain.classes)):
    members = (torch.tensor(plain.targets) == label).nonzero().squeeze(1)
    members = members[torch.randperm(len(members))].tolist()
    tested, held = round(len(members) / 5), round(len(members) * 0.08)
    parts["test"] += members[:tested]
    parts["held out"] += members[tested : tested + held]
    parts["train"] += members[tested + held :]
train = DataLoader(Subset(augmented, parts["train"]), 64, shuffle=True, drop_last=True, num_workers=2)
held_out, test = (DataLoader(Subset(plain, parts[name]), 64) for name in ("held out", "test"))

network = timm.create_model(options.model, num_classes=len(plain.classes))
nn.init.zeros_(network.get_classifier().weight)
if options.tuned:
    network.load_state_dict(load_file(options.tuned))
elif options.weights:
    own = network.state_dict()
    weights = {name: value for name, value in load_file(options.weights).items() if value.shape == own[name].shape}
    network.load_state_dict(weights, strict=False)  # all but the classifier of other classes
if not options.tuned:
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * len(train))
    for epoch in range(options.epochs):
        for images, labels in train:
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images), labels, label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
        print(f"fine-tuned for {epoch + 1} of {options.epochs} epochs", flush=True)
network.eval()
if options.keep:
    save_file(network.state_dict(), options.keep)

# What exitwise adds.
start = time.perf_counter()
model = ew.add_exits(network, exits=4, input_shape=(3, size, size))
images = next(iter(test))[0]
print(ew.fit_exits(model, train, augmented_passes=3, epochs=20, distil=0.5))
with torch.no_grad():
    print("last exit unchanged to the bit:", torch.equal(model(images)[-1], network(images)))
calibration = ew.calibrate(model, held_out, max_accuracy_drop=0.01)
print(ew.evaluate(model, calibration, test))
preprocessing = ew.Preprocessing(size, tuple(mean), tuple(std), augment="resize", crop=0.875)
print(ew.export(model, calibration, options.out, preprocessing=preprocessing, classes=plain.classes, overwrite=True))
print(ew.bench(model, calibration, test, forms=["eager", "onnx"], batch_sizes=[1, 64], seconds=options.seconds))
print(f"{time.perf_counter() - start:.0f} s after the fine-tuning")
