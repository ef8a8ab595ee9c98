"""The command line with stages that take a while longer, as a program for a process of its own."""


def slowed_by(seconds):
    """Return that program."""
    return f"""
import sys, time
from exitwise.deploy.chain import Chain
step = Chain.step
def slow(self, k, inside):
    time.sleep({seconds})
    return step(self, k, inside)
Chain.step = slow
from exitwise.cli import main
main(sys.argv[1:])
"""
