import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from exitwise.models.authors import load_authors_checkpoint, msdnet_from_authors, our_name

CONFIG = {
    "data": "cifar10",
    "nBlocks": 3,
    "base": 1,
    "step": 1,
    "stepmode": "lin_grow",
    "nChannels": 4,
    "growthRate": 4,
    "grFactor": [1, 2, 4],
    "bnFactor": [1, 2, 4],
    "prune": "max",
}


def authors_state(model):
    """A state under the authors' names, inverted by search over every name they could have."""
    inverse = {our_name(name): name for name in candidate_names()}
    return {inverse[name]: tensor.clone() for name, tensor in model.state_dict().items()}


def candidate_names():
    leaves = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    for leaf in leaves:
        for k in range(3):
            yield f"classifier.{k}.linear.{leaf}"
            for i in range(2):
                for n in range(2):
                    yield f"classifier.{k}.m.{i}.net.{n}.{leaf}"
            for j in range(6):
                for s in range(3):
                    for n in range(2):
                        yield f"blocks.{k}.{j}.{'layers' if j == 0 else 'm'}.{s}.net.{n}.{leaf}"
                    for unit in ("conv_normal", "conv_down"):
                        for n in (0, 1, 3, 4):
                            yield f"blocks.{k}.{j}.layers.{s}.{unit}.net.{n}.{leaf}"


@pytest.mark.parametrize("kind", ["pth.tar", "pth.tar, DataParallel", "safetensors", "npz"])
def test_a_released_checkpoint_gives_the_same_network(kind, tmp_path):
    torch.manual_seed(1)
    source = msdnet_from_authors(CONFIG)
    state = authors_state(source)
    path = tmp_path / f"checkpoint.{kind.split(',')[0]}"
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in state.items()})
    else:
        prefix = "module." if "Parallel" in kind else ""
        content = {"epoch": 299, "arch": "msdnet", "state_dict": {prefix + k: v for k, v in state.items()}}
        torch.save(content, path)
    model = msdnet_from_authors(CONFIG)
    load_authors_checkpoint(model, path)
    torch.testing.assert_close(model.state_dict(), source.state_dict(), rtol=0, atol=0)


def test_a_checkpoint_of_another_network_is_refused_and_nothing_changes(tmp_path):
    other = msdnet_from_authors({**CONFIG, "nChannels": 8})
    torch.save({"state_dict": authors_state(other)}, tmp_path / "other.pth.tar")
    model = msdnet_from_authors(CONFIG)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="another network: it has another shape for stages"):
        load_authors_checkpoint(model, tmp_path / "other.pth.tar")
    torch.save({"state_dict": {"blocks.0.0.layers.0.net.0.weight": torch.ones(1)}}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match="lacks stages"):
        load_authors_checkpoint(model, tmp_path / "part.pth")
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


class Bomb:
    def __reduce__(self):
        return (open, (self.target, "w"))


@pytest.mark.parametrize("save", [torch.save, lambda obj, path: path.write_bytes(pickle.dumps(obj))])
def test_code_in_a_pickle_is_not_run(save, tmp_path):
    bomb = Bomb()
    bomb.target = str(tmp_path / "executed")
    save({"state_dict": bomb}, tmp_path / "bomb.pth.tar")
    with pytest.raises(ValueError, match=r"could not read it|got 'state_dict' and an object"):
        load_authors_checkpoint(msdnet_from_authors(CONFIG), tmp_path / "bomb.pth.tar")
    assert not (tmp_path / "executed").exists()


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match="found none at"):
        load_authors_checkpoint(msdnet_from_authors(CONFIG), tmp_path / "none.pth")
