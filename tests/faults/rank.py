"""What torchrun starts in test_distributed_faults.py: ``exitwise`` on a tiny network, in a process that hurts itself.

EXITWISE_FAULT is "RANK SIGNAL ITERATION FILE": after that loaded batch, the process notes the time in the file and
sends itself the signal.
"""

import os
import sys
import time
from pathlib import Path

import torch
from children import tiny_network

from exitwise import runs, workflow
from exitwise.cli import main
from exitwise.training.trainer import Trainer


def hurt(rank, number, iteration, file):
    train_on = Trainer.train_on

    def hurt_after(trainer, *batch):
        train_on(trainer, *batch)
        if trainer.progress.iteration == int(iteration) and os.environ.get("RANK", "0") == rank:
            Path(file).write_text(str(time.time()))
            os.kill(os.getpid(), int(number))

    Trainer.train_on = hurt_after


if __name__ == "__main__":
    torch.set_num_threads(1)
    runs.build_model = workflow.build_model = tiny_network
    if "EXITWISE_FAULT" in os.environ:
        hurt(*os.environ["EXITWISE_FAULT"].split(" ", 3))
    main(sys.argv[1:])
