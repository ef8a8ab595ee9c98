"""Slow, obvious oracles. Loops over samples, double backward through rebuilt networks, nothing shared with src."""

import copy
import math

import torch
import torch.nn.functional as F
from torch.func import functional_call


def proportions(p, exits):
    powers = [p**k for k in range(1, exits + 1)]
    return [power / sum(powers) for power in powers]


def take_most_confident(confidences, shares):
    """Exit of each sample: exit by exit the floor(n * share) most confident that are still there."""
    n, exits = len(confidences), len(shares)
    left, result = list(range(n)), [exits - 1] * n
    for k in range(exits - 1):
        by_confidence = sorted(left, key=lambda b: -float(confidences[b][k]))
        for b in by_confidence[: math.floor(n * shares[k] + 1e-9)]:
            result[b] = k
            left.remove(b)
    return result


def calibrate(confidences, shares):
    """Thresholds of exits 1..K-1, None where nobody may leave: method text, "Calibration, exactly"."""
    n, exits = len(confidences), len(shares)
    left, thresholds = list(range(n)), []
    for k in range(exits - 1):
        count = math.floor(n * shares[k] + 1e-9)
        if count == 0 or len(left) < count:
            thresholds.append(None)
            continue
        thresholds.append(sorted((float(confidences[b][k]) for b in left), reverse=True)[count - 1])
        left = [b for b in left if float(confidences[b][k]) < thresholds[-1]]
    return thresholds


def leave(confidences, thresholds):
    """Exit of each sample: the first whose threshold its confidence reaches, else the last."""
    result = []
    for row in confidences:
        exits = [k for k, t in enumerate(thresholds) if t is not None and float(row[k]) >= t]
        result.append(exits[0] if exits else len(row) - 1)
    return result


def meta_loss(losses, allocation, objective):
    exits = losses.shape[1]
    groups = [[losses[b, k] for b in range(len(losses)) if allocation[b] == k] for k in range(exits)]
    if objective == "per-exit":
        return sum(sum(group) / len(group) for group in groups if group)
    return sum(sum(group) for group in groups if group) / len(losses)


def losses_and_confidences(model, x, y):
    logits = model(x)
    losses = torch.stack([F.cross_entropy(z, y, reduction="none") for z in logits], dim=1)
    confidences = torch.stack([torch.softmax(z, dim=1).max(dim=1).values for z in logits], dim=1)
    return losses, confidences.detach()


def wpn_weights(wpn, losses, confidences, inputs, centering, epsilon):
    """Weights from a plain Sequential MLP."""
    features = {"loss": [losses], "conf": [confidences], "both": [losses, confidences]}[inputs]
    raw = wpn(torch.cat(features, dim=1).detach())
    dims = {"exits": (1,), "samples": (0,), "all": (0, 1)}[centering]
    return 1 + epsilon * (raw - raw.mean(dim=dims, keepdim=True))


def weighted(losses, weights):
    return sum((weights[:, k] * losses[:, k]).mean() for k in range(losses.shape[1]))


def meta_loss_after_step(model, optimizer, train, meta, weights, shares, objective):
    """The meta loss as a differentiable function of the weights: a copied network, SGD by hand, double backward."""
    pseudo = copy.deepcopy(model)
    params = dict(pseudo.named_parameters())
    losses, _ = losses_and_confidences(pseudo, *train)
    grads = torch.autograd.grad(weighted(losses, weights), list(params.values()), create_graph=True)
    originals = dict(model.named_parameters())
    group = optimizer.param_groups[0]
    updated = {}
    for (name, param), grad in zip(params.items(), grads, strict=True):
        direction = grad + group["weight_decay"] * param
        buffer = optimizer.state.get(originals[name], {}).get("momentum_buffer")
        if buffer is not None:
            direction = group["momentum"] * buffer + direction
        updated[name] = param - group["lr"] * direction
    logits = functional_call(pseudo, updated, (meta[0],))
    confidences = torch.stack([torch.softmax(z, dim=1).max(dim=1).values for z in logits], dim=1)
    allocation = take_most_confident(confidences.detach(), shares)
    meta_losses = torch.stack([F.cross_entropy(z, meta[1], reduction="none") for z in logits], dim=1)
    return meta_loss(meta_losses, allocation, objective), allocation


def train(model, optimizer, wpn, wpn_optimizer, batches, config):
    """The authors' training step on each batch; yields what happened in every half step."""
    shares = proportions(config["p"], len(copy.deepcopy(model)(batches[0][0][:2])))
    keys = (config["wpn_input"], config["centering"], config["epsilon"])
    for index, (x, y) in enumerate(batches):
        half = (len(x) + 1) // 2
        a, b = (x[:half], y[:half]), (x[half:], y[half:])
        for train_half, meta_half in ((a, b), (b, a)):
            record = {}
            if index % config["meta_interval"] == 0:
                observed, confidences = losses_and_confidences(copy.deepcopy(model), *train_half)
                weights = wpn_weights(wpn, observed, confidences, *keys)
                loss, allocation = meta_loss_after_step(
                    model, optimizer, train_half, meta_half, weights, shares, config["objective"]
                )
                wpn_optimizer.zero_grad()
                loss.backward()
                record.update(meta_loss=loss.detach(), allocation=allocation, pseudo_weights=weights.detach())
                record["wpn_grad"] = {name: p.grad.clone() for name, p in wpn.named_parameters()}
                wpn_optimizer.step()
            losses, confidences = losses_and_confidences(model, *train_half)
            weights = wpn_weights(wpn, losses, confidences, *keys).detach()
            optimizer.zero_grad()
            total = weighted(losses, weights)
            total.backward()
            optimizer.step()
            record.update(losses=losses.detach(), confidences=confidences, weights=weights, loss=total.detach())
            yield record
