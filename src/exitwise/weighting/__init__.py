"""Sample weights for early-exit training, and the exact gradient of the meta loss with respect to them.

Functions on tensors only: nothing here knows a trainer, a configuration or a file.

The names of axes are explained in ``shapes.py``.
"""
