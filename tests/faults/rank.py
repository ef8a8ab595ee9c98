"""What torchrun starts in test_distributed_faults.py: ``exitwise`` on a tiny network, in a process that hurts itself.

EXITWISE_FAULT is "RANK SIGNAL ITERATION FILE": after that loaded batch, the process notes the time in the file and
sends itself the signal; with NAN for the signal, the images of that batch are no numbers in this process.
"""

import math
import os
import sys
import time
from pathlib import Path

import torch
from children import tiny_network

from exitwise.cli import main
from exitwise.runs import build
from exitwise.training.trainer import Trainer


def hurt(rank, fault, iteration, file):
    train_on = Trainer.train_on

    def hurt_at(trainer, images, targets):
        here = os.environ.get("RANK", "0") == rank and trainer.progress.iteration + 1 == int(iteration)
        train_on(trainer, images * math.nan if here and fault == "NAN" else images, targets)
        if here:
            Path(file).write_text(str(time.time()))
            if fault != "NAN":
                os.kill(os.getpid(), int(fault))

    Trainer.train_on = hurt_at


if __name__ == "__main__":
    torch.set_num_threads(1)
    build.build_model = tiny_network
    if "EXITWISE_FAULT" in os.environ:
        hurt(*os.environ["EXITWISE_FAULT"].split(" ", 3))
    main(sys.argv[1:])
