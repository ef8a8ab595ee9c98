"""Array types that say their shape: ``Float[Tensor, "batch exits"]`` is a tensor of floats with these two axes.

The names are jaxtyping's where it is installed; the tests check every call against them. Where it is not, they are
stand-ins by which ``Float[Tensor, "batch exits"]`` is ``Tensor``. Imports neither torch nor NumPy.

An axis has the same size wherever its name stands in one signature. Axes are named alike everywhere:

* ``batch``: samples of a half batch, or of any batch that a network is given
* ``meta``: samples of the half batch that judges the other's weights
* ``samples``: samples whose outputs were recorded, or that have reached an exit
* ``chosen``, ``rows``: some of the samples, as an index names them
* ``design``, ``test``: samples that policies are made from, and that test them
* ``exits``: exits, cheap to dear
* ``classes``: classes
* ``policies``: policies that are tested one after the other
* ``channels height width``: of an image
* ``*image``, ``*param``, ``*samples``: any number of axes, the same ones throughout a signature
* ``...``: any axes at all; an empty string: none, a scalar
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["Bool", "Float", "Float64", "Int", "Shaped"]

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float64, Int, Shaped
else:
    try:
        from jaxtyping import Bool, Float, Float64, Int, Shaped
    except ImportError:

        class _Unchecked:
            """Gives back the array type of ``[array type, shape]``."""

            def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
                return item[0]

        Bool = Float = Float64 = Int = Shaped = _Unchecked
