"""Sample weights for early-exit training, and the exact gradient of the meta loss with respect to them.

Functions on tensors only: nothing here knows a trainer, a configuration or a file.

Shapes used throughout: ``B`` samples of a half batch, ``K`` exits (cheap to dear), ``C`` classes.
"""
