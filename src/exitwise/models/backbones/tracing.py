"""A network's forward pass as a torch.fx graph that keeps `training` a question of run time.

What the network asks of shapes and types while it is traced is answered by a dry run on tensors without data; what it
asks of pixel values, or of its training mode, cannot be. A module that asks such things is kept whole.

Knows nothing of exits.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
import torch.utils.checkpoint
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._pytree import tree_leaves, tree_map

from exitwise.kernels.flops import flop_counter
from exitwise.kernels.inputs import Inputs, batch_of, has_tokens
from exitwise.kernels.modes import evaluating
from exitwise.models.backbones.backbone import CannotSplitError, answer, cannot_split, is_layer, unchanged

_KNOWN = "exitwise_value"
_MISSING = object()
DRY_RUN_BATCH = 2
_CONCRETE = frozenset({"dtype", "ndim", "layout", "is_cuda", "is_sparse", "is_nested", "is_mps"})


class ReadAttribute(NamedTuple):
    """A plain value that a forward pass has read from a module."""

    module: nn.Module
    name: str
    attribute: str
    value: Any


class Traced:
    """A traced network.

    Attributes:
        module: runs as the network does; shares its submodules, parameters and buffers.
        macs: multiply-accumulates of each node for one image.
        outputs: name of each submodule that was called once and returned a tensor, and the node of that.
        read: plain values of attributes that the forward pass has read, which the graph holds as they were.
        fixed: whether all sizes but the batch's are as in the example.
        whole: name of the first submodule of each class that was kept whole because it asks what cannot be answered.
    """

    def __init__(self, module: fx.GraphModule, tracer: _Tracer, whole: Sequence[str], fixed: bool) -> None:
        self.module = module
        self.fixed = fixed
        self.whole = tuple(whole)
        self.read = [
            ReadAttribute(module, name, attribute, value) for (name, attribute), (module, value) in tracer.read.items()
        ]
        self.macs = {node: macs // tracer.batch for node, macs in tracer.macs.items()}
        self.outputs = {
            name: node
            for name, node in tracer.returned.items()
            if node is not None and isinstance(value_of(node), Tensor)
        }


def value_of(node: fx.Node) -> Any:
    """Return what a node was in the dry run: a tensor without data, a number, ..."""
    return node.meta.get(_KNOWN, _MISSING)


def trace(network: nn.Module, example: Inputs) -> Traced:
    """Trace a network's answer to inputs such as the example; its only placeholder is these.

    Raises:
        CannotSplitError: if the network itself, not one of its submodules, decides by pixel values.
    """
    root = _Call(network, list(example) if isinstance(example, dict) else [])
    names = {type(module): name for name, module in reversed(list(network.named_modules()))}
    every = {module: name for name, module in network.named_modules()}
    whole: set[type] = set()
    batch = batch_of(example, DRY_RUN_BATCH, next(network.parameters()))

    def run(training: bool) -> tuple[fx.GraphModule, _Tracer]:
        while True:
            with (
                FakeTensorMode(allow_non_fake_inputs=True) as fake,
                evaluating(network),
                unchanged(network),
                _without_cache(network),
            ):
                tracer = _Tracer(tree_map(fake.from_tensor, batch), fake, whole, training, every)
                try:
                    graph = tracer.trace(root)
                except Exception as error:
                    failed = type(network.get_submodule(tracer.failed)) if tracer.failed else None
                    if failed is None or failed in whole:
                        raise _undecidable(network, tracer.failed or "", error) from error
                    whole.add(failed)  # its likes would fail alike
                    continue
            module = fx.GraphModule(tracer.attributes, graph, type(network).__name__)
            module.graph.eliminate_dead_code()
            return module, tracer

    while True:
        module, tracer = run(training=False)
        before = len(whole)
        same = not tracer.asked or _outline(module) == _outline(run(training=True)[0])
        if len(whole) > before:  # what could not be traced in training mode
            continue
        if same:
            return Traced(module, tracer, [names[kind] for kind in whole], not has_tokens(example))
        asking = {type(network.get_submodule(name)) for name in tracer.asked if name}
        if not asking - whole:
            raise _undecidable(network, "", fx.proxy.TraceError("it computes otherwise in its training mode"))
        whole |= asking


def _outline(module: fx.GraphModule) -> list[Any]:
    """Return what a graph computes, in a form to be compared with that of another trace of the same network."""
    place = {node: index for index, node in enumerate(module.graph.nodes)}

    def target(node: fx.Node) -> Any:
        called = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(called, Value):
            return id(called.value) if isinstance(called.value, nn.Parameter) else tuple(called.value.shape)
        return type(called) if isinstance(called, Training) else node.target

    def argument(part: Any) -> Any:
        return fx.node.map_arg(part, lambda each: ("node", place[each]))

    return [(node.op, target(node), argument(node.args), argument(node.kwargs)) for node in place]


def _undecidable(network: nn.Module, name: str, error: Exception) -> CannotSplitError:
    what = f"module {name}" if name else "its own forward"
    return cannot_split(network, f"{what} cannot be traced, {str(error).strip() or type(error).__name__}")


@contextmanager
def _no_checkpointing() -> Iterator[None]:
    """Within this context, gradient checkpointing, of which a graph knows nothing, ends the trace of what does it."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise fx.proxy.TraceError("it checkpoints gradients (with that turned off it can be)")

    generators = ("_checkpoint_without_reentrant_generator", "_checkpoint_without_reentrant_generator_impl")
    kept = {name: value for name in generators if (value := getattr(torch.utils.checkpoint, name, None)) is not None}
    kept["CheckpointFunction"] = torch.utils.checkpoint.CheckpointFunction
    for name in kept:
        setattr(torch.utils.checkpoint, name, refuse)
    refuse.apply = refuse  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(torch.utils.checkpoint, name, value)


@contextmanager
def _without_cache(network: nn.Module) -> Iterator[None]:
    """Within this context, no module keeps keys and values for tokens to come, as transformers' decoders do."""
    configs = {id(config): config for module in network.modules() if (config := getattr(module, "config", None))}
    caching = [config for config in configs.values() if getattr(config, "use_cache", None) is True]
    for config in caching:
        config.use_cache = False
    try:
        yield
    finally:
        for config in caching:
            config.use_cache = True


class _Call(nn.Module):
    """The answer of a network to inputs, which have these names, or none."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.names = names

    def forward(self, inputs: Any) -> Any:
        return answer(self.network, {name: inputs[name] for name in self.names} if self.names else inputs)


class Value(nn.Module):
    """Returns a parameter or buffer that some module of the network holds."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        if isinstance(value, nn.Parameter):
            self.value = value
        else:
            self.register_buffer("value", value)

    def forward(self) -> Tensor:
        return self.value


class Training(nn.Module):
    """Returns its own training mode, which is that of the part of the network it lies in."""

    def forward(self) -> bool:
        return self.training


class _Known(fx.Proxy):
    """A proxy that answers from the dry run what it can."""

    def _answer(self) -> Any:
        value = value_of(self.node)
        if value is _MISSING:
            return cast("_Tracer", self.tracer).answer_training()
        if isinstance(value, Tensor):
            raise fx.proxy.TraceError("it asks for values in a tensor")
        return value

    def __bool__(self) -> bool:
        return bool(self._answer())

    def __int__(self) -> int:
        return int(self._answer())

    def __index__(self) -> int:
        return self._answer().__index__()

    def __float__(self) -> float:
        return float(self._answer())

    def __len__(self) -> int:
        value = value_of(self.node)
        return len(value) if isinstance(value, Tensor) else len(self._answer())

    def __iter__(self) -> Iterator[Any]:
        return (operator.getitem(self, index) for index in range(len(self)))

    def __getattr__(self, name: str) -> Any:
        value = value_of(self.node)
        if name in _CONCRETE and isinstance(value, Tensor):
            return getattr(value, name)
        return _Attribute(self, name)


class _Attribute(_Known, fx.proxy.Attribute):
    pass


class _Tracer(fx.Tracer):
    """Traces with a dry run beside it; see the module's docstring.

    Attributes:
        training: what is answered where a forward pass decides by its training mode.
        asked: names of the modules whose forward pass does so.
        read: name of a module and of its attribute to that module and the plain value that was read.
        failed: name of the innermost submodule that could not be traced; empty where that is the network itself.
        returned: name of a submodule to the node that it returned; None where it was called several times.
        macs: multiply-accumulates of each node on the dry run's batch.
        attributes: module behind each target of the graph.
    """

    batch = DRY_RUN_BATCH

    def __init__(
        self, inputs: Inputs, fake: FakeTensorMode, whole: set[type], training: bool, names: dict[nn.Module, str]
    ) -> None:
        super().__init__()
        self._names = names
        self.inputs = inputs
        self.fake = fake
        self.whole = frozenset(whole)
        self.training = training
        self.asked: list[str] = []
        self.read: dict[tuple[str, str], tuple[nn.Module, Any]] = {}
        self._inside: list[str] = [""]
        self.failed: str | None = None
        self.returned: dict[str, fx.Node | None] = {}
        self.macs: dict[fx.Node, int] = {}
        self.attributes: dict[str, nn.Module] = {}
        self.counter = flop_counter()
        self._running = False

    def trace(self, root: nn.Module | Callable[..., Any], concrete_args: Any = None) -> fx.Graph:
        with (
            self._training_is_asked(),
            self._attributes_are_noted(),
            _no_checkpointing(),
            torch.enable_grad(),
            self.counter,
        ):
            return super().trace(root, concrete_args)

    # What becomes a node of its own.

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return type(module) in self.whole or is_layer(module)

    def path_of_module(self, module: nn.Module) -> str:
        return super().path_of_module(module).removeprefix("network").removeprefix(".")

    def call_module(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._running:
            return forward(*args, **kwargs)
        try:
            name = self.path_of_module(module)
        except NameError:  # of a module that forward makes anew
            return forward(*args, **kwargs)
        _check_context()  # what is wrong here is so in the module that calls this one
        self._inside.append(name)
        try:
            result = super().call_module(module, forward, args, kwargs)
            _settle_attributes(module)
        except Exception:
            if self.failed is None:
                self.failed = name
            raise
        finally:
            self._inside.pop()
        self.returned[name] = None if name in self.returned else self._last_computed(result)
        return result

    def _last_computed(self, result: Any) -> fx.Node | None:
        """Return the tensor in what a module returned that was computed last."""
        nodes = [part.node for part in tree_leaves(result) if isinstance(part, fx.Proxy)]
        tensors = {node for node in nodes if isinstance(value_of(node), Tensor)}
        return next((node for node in reversed(self.graph.nodes) if node in tensors), None) if tensors else None

    def getattr(self, attr: str, value: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self._running or not isinstance(value, Tensor):
            return value
        return self._read(Value(value), attr.replace(".", "_"))

    def create_arg(self, value: Any) -> Any:
        if isinstance(value, (Tensor, nn.Parameter)) and not self._running:
            return self._read(Value(value), "constant").node
        return super().create_arg(value)

    def _read(self, module: nn.Module, name: str) -> Any:
        """Return a node that calls ``module``; each use has its own, so that each part of the network can hold its
        own."""
        target = f"{name}_{len(self.attributes)}"
        self.attributes[target] = module
        return self.create_proxy("call_module", target, (), {})

    def answer_training(self) -> bool:
        """Answer a module that decides by its training mode."""
        self.asked.append(self._inside[-1])
        return self.training

    @contextmanager
    def _training_is_asked(self) -> Iterator[None]:
        """Within this context, ``self.training`` of a module that is traced is a node of the graph."""

        def read(module: nn.Module) -> Any:
            return module.__dict__["training"] if self._running else self._read(Training(), "training")

        def write(module: nn.Module, mode: bool) -> None:
            module.__dict__["training"] = mode

        nn.Module.training = property(read, write)  # type: ignore[assignment]
        try:
            yield
        finally:
            del nn.Module.training

    @contextmanager
    def _attributes_are_noted(self) -> Iterator[None]:
        """Within this context, plain values that forward passes read from modules are noted."""

        def read(module: nn.Module, attribute: str) -> Any:
            value = object.__getattribute__(module, attribute)
            plain = value is None or type(value) in (bool, int, float, str)
            if plain and not self._running and not attribute.startswith("_") and attribute != "training":
                own = object.__getattribute__(module, "__dict__")
                if attribute in own and (name := self._names.get(module)) is not None:
                    self.read.setdefault((name, attribute), (module, value))
            return value

        nn.Module.__getattribute__ = read  # type: ignore[assignment]
        try:
            yield
        finally:
            del nn.Module.__getattribute__

    # The dry run.

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Known(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        _check_context()
        if kind == "call_method" and str(target).endswith("_") and not str(target).endswith("__"):
            written = args[0].node
            if written.op == "call_module" and isinstance(self.attributes.get(str(written.target)), Value):
                raise fx.proxy.TraceError("it writes to a buffer")
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        node = proxy.node
        if kind == "call_module" and target not in self.attributes:
            self.attributes[target] = self.root.get_submodule(f"network.{target}" if target else "network")
        if kind == "placeholder":
            node.meta[_KNOWN] = self.inputs
        elif kind != "output":
            self._run(node)
            return self._unpacked(proxy)
        return proxy

    def _unpacked(self, proxy: fx.Proxy) -> Any:
        """Return what came in a tuple or list one by one, and None as None, so that it can be asked whether it is."""
        value = value_of(proxy.node)
        if value is None and proxy.node.op == "call_module":  # what hands on nothing, such as Identity, does nothing
            self.graph.erase_node(proxy.node)
            return None
        if type(value) not in (tuple, list) or not any(isinstance(part, Tensor) for part in tree_leaves(value)):
            return proxy
        return type(value)(
            None if part is None else self.create_proxy("call_function", operator.getitem, (proxy, index), {})
            for index, part in enumerate(value)
        )

    def _run(self, node: fx.Node) -> None:
        def known(argument: fx.Node) -> Any:
            value = value_of(argument)
            return False if value is _MISSING else value  # the training mode, of which this is a run in eval mode

        args, kwargs = (fx.node.map_arg(part, known) for part in (node.args, node.kwargs))
        before = self.counter.get_total_flops()
        self._running = True
        try:
            with torch.no_grad():
                value = self._call(node, args, kwargs)
        finally:
            self._running = False
        self.macs[node] = (self.counter.get_total_flops() - before) // 2
        if not (node.op == "call_module" and isinstance(self.attributes[str(node.target)], Training)):
            node.meta[_KNOWN] = value

    def _call(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        module = self.attributes[str(node.target)]
        if type(module) in self.whole:  # it may look at pixel values: let it see some
            with unset_fake_temporarily():
                value = module(*tree_map(_with_data, args), **tree_map(_with_data, kwargs))
        else:
            value = module(*args, **kwargs)
        return tree_map(lambda part: self.fake.from_tensor(part) if isinstance(part, Tensor) else part, value)


def _settle_attributes(module: nn.Module) -> None:
    """Make plain values of the sizes that a module has written to its attributes.

    Raises:
        TraceError: for anything else that it has written.
    """
    for held in (module._buffers, module.__dict__):
        for name, value in held.items():
            if isinstance(value, fx.Proxy):
                known = value_of(value.node)
                if not isinstance(known, (int, float, str)) or held is module._buffers:
                    raise fx.proxy.TraceError("it writes to a buffer or an attribute")
                held[name] = known  # type: ignore[assignment]


def _check_context() -> None:
    """Raise TraceError within a context that a graph would not remember."""
    if not torch.is_grad_enabled():
        raise fx.proxy.TraceError("it turns gradients off for a part of what it computes")
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise fx.proxy.TraceError("it turns autocast on for a part of what it computes")


def _with_data(value: Any) -> Any:
    """Return a tensor of the dry run filled with ones; other values as they are."""
    if not isinstance(value, Tensor):
        return value
    return torch.ones(value.shape, dtype=value.dtype, device=value.device)
