"""Exits on a network of your own: its classifier stays, bit for bit, and inference stops where the policy says.

python examples/own_network.py
"""

import timm
import torch

import exitwise as ew

torch.manual_seed(0)
network = timm.create_model("resnet10t", num_classes=10).eval()  # or yours, trained
model = ew.add_exits(network, exits=3, input_shape=(3, 64, 64)).eval()
images = torch.randn(16, 3, 64, 64)  # yours, preprocessed
with torch.no_grad():
    print("last exit unchanged:", torch.equal(model(images)[-1], network(images)))

held_out = [(images, torch.randint(10, (16,)))]  # yours: neither trained on nor tested on
costs = ew.count_cost(model).macs
outputs = ew.collect_outputs(model, held_out)
policy, _ = ew.calibrate_macs(outputs.confidences, costs, macs=0.6 * costs[-1])
result = ew.EarlyExitRunner(model, policy, costs)(images)
print("leaving at exits:", torch.bincount(result.exit, minlength=3).tolist())
print(f"share of the full network's MACs: {result.macs.mean().item() / costs[-1]:.2f}")
