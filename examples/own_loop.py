"""The exact meta-gradient in a training loop of your own: any module that returns a list of logits, SGD, Adam or AdamW.

python examples/own_loop.py
"""

import torch

import exitwise as ew

torch.manual_seed(0)
model = ew.create_model("msdnet_small")  # or yours
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
weight_network = ew.WeightNetwork(exits=4, zero_init=True)  # losses of a sample -> its weight at each exit
weight_optimizer = torch.optim.Adam(weight_network.parameters(), lr=1e-3)
proportions = ew.exit_proportions(0.75, exits=4)  # the budget: who leaves where
loader = [(torch.randn(64, 1, 8, 8), torch.randint(10, (64,))) for _ in range(3)]  # yours

for images, labels in loader:
    (a, b), (ya, yb) = images.chunk(2), labels.chunk(2)
    for train, meta in [((a, ya), (b, yb)), ((b, yb), (a, ya))]:
        forward = ew.train_pass(model, *train)  # one forward pass, used twice
        weights = weight_network(forward.losses, forward.confidences)
        gradient = ew.meta_gradient(model, optimizer, forward, weights, meta, proportions)
        weight_optimizer.zero_grad()
        weights.backward(gradient.weights)
        weight_optimizer.step()

        weights = weight_network(forward.losses, forward.confidences).detach()
        optimizer.zero_grad()
        loss = ew.weighted_loss(forward.losses, weights)
        loss.backward()
        optimizer.step()
    print(
        f"loss {loss.item():.3f}  meta loss {gradient.loss.item():.3f}  mean |w - 1| {(weights - 1).abs().mean():.4f}"
    )
