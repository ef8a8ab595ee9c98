import copy

import torch

from exitwise import create_method, create_model
from exitwise.methods import BackboneFirst
from exitwise.training.step import half_batches, half_step


def test_the_last_exit_alone_and_then_the_other_method():
    model = create_model("msdnet_small").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    then = create_method("meta-weighted", proportions=[0.4, 0.3, 0.2, 0.1], hidden=8)
    method = BackboneFirst(then, half_steps=3)
    heads = copy.deepcopy([stage.head.linear.weight for stage in model.stages])
    steps = []
    for index in range(3):
        for halves in half_batches(torch.randn(12, 1, 8, 8), torch.randint(10, (12,))):
            steps.append(half_step(model, optimizer, method, *halves, index))
            if len(steps) == 3:
                assert torch.equal(heads[0], model.stages[0].head.linear.weight)
                assert not torch.equal(heads[3], model.stages[3].head.linear.weight)
    assert [step.meta_loss is None for step in steps] == [True] * 3 + [False] * 3
    assert steps[0].weights.sum(0).tolist() == [0, 0, 0, 6]
    state = method.state_dict()
    again = BackboneFirst(create_method("meta-weighted", proportions=[0.4, 0.3, 0.2, 0.1], hidden=8), 3)
    again.load_state_dict(state)
    assert again.done == 6
    assert method.optimizer is then.optimizer
