"""Detects changes of modules: replaced, hooked or patched modules, and other weights.

Fast paths read weights in place and never call the modules that hold them. That is valid only while a call would give
the same result. Layers count the changes made through them (`Changes`); comparison finds the other changes.
"""

from collections.abc import Iterator
from itertools import chain
from operator import attrgetter, is_

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from dsv4.model.layers import Changes, Counted, class_patches, classes_of, walk

_PLAIN = (nn.Embedding, nn.ModuleList)
_OF_TORCH = frozenset(vars(nn.Module()))
_GLOBAL_HOOKS = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)
_SWEEP = 256  # calls of `stirred` that compare everything once
_SAMPLED, _SPOTS = 512, 4  # tensors and numbers of each that are read to notice writes around the version counter
_VERSION = attrgetter("_version")
_INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}  # numpy has no bfloat16


class Watch:
    """What some modules were when it looked. One that has not looked finds everything changed."""

    def __init__(self) -> None:
        self._modules: list[nn.Module] = []

    def __reduce__(self) -> tuple:
        return type(self), ()  # a copied model is another one

    def look(self, *roots: nn.Module, sweep: bool = False) -> None:
        """Take them as they are now, with everything below them. sweep: `stirred` will be called."""
        modules = list(dict.fromkeys(module for root in roots for _, module in walk(root)))
        classes = classes_of(modules)
        self._whole, self._next = _Part(modules, classes), 0
        self._parts = [_Part(modules[i::_SWEEP], classes[i::_SWEEP]) for i in range(_SWEEP if sweep else 0)]
        uncounted = (m for m in modules if not isinstance(m, Counted))
        self._hooks = [*_GLOBAL_HOOKS, *(h for m in uncounted for h in (m._forward_hooks, m._forward_pre_hooks))]
        self._hooked = list(map(len, self._hooks))
        self._count, self._settings = Changes.count, _settings(modules)
        self._modules = modules

    def stirred(self) -> bool:
        """Whether anything was done to a layer or a list of layers, or a hook came or went elsewhere. `_SWEEP` calls
        compare everything else once, a part each: a call takes about 0.01 us a module."""
        if not self._modules or self._count != Changes.count or list(map(len, self._hooks)) != self._hooked:
            return True
        self._next = (self._next + 1) % _SWEEP
        return not self._parts[self._next].same()

    def changed(self) -> bool:
        """Whether types, hooks, children, settings, or the place of any tensor differ from what was looked at. Takes
        about 0.7 us a module."""
        if not self._modules:
            return True
        same = list(map(len, self._hooks)) == self._hooked and self._whole.same()
        if same and self._count != Changes.count:
            settings = _settings(self._modules)
            same = len(settings) == len(self._settings) and all(map(is_, settings, self._settings))
            self._count = Changes.count if same else self._count
        return not same


class _Part:
    """What some modules and some classes were."""

    def __init__(self, modules: list[nn.Module], classes: list[type]) -> None:
        self._modules, self._types = modules, list(map(type, modules))
        dicts = [part for m in modules for part in (vars(m)["_modules"], m._parameters, m._buffers) if part]
        hooks = [part for m in modules for part in (m._forward_hooks, m._forward_pre_hooks)]
        self._dicts = [*dicts, *hooks, *map(vars, modules)]
        self._sizes = list(map(len, self._dicts))
        self._values = [part.values() for part in (*dicts, *map(vars, classes))]
        self._held = list(chain.from_iterable(self._values))
        self._tensors = [t for part in dicts for t in part.values() if isinstance(t, Tensor)]
        self._addresses = list(map(Tensor.data_ptr, self._tensors))
        self._memory = [tensor.detach() for tensor in self._tensors]  # stays readable after `parameter.data = other`

    def same(self) -> bool:
        return (
            list(map(type, self._modules)) == self._types
            and list(map(len, self._dicts)) == self._sizes
            and all(map(is_, chain.from_iterable(self._values), self._held))
            and list(map(Tensor.data_ptr, self._tensors)) == self._addresses
        )


class WeightWatch:
    """Detects weights that were written in place: by version counters and, for writes that bypass them
    (`parameter.data`), by a few numbers of each weight. It cannot detect a write of single numbers through `data`."""

    def __init__(self, *roots: nn.Module) -> None:
        modules = [module for root in roots for _, module in walk(root)]
        held = (t for m in modules for part in (m._parameters, m._buffers) for t in part.values())
        tensors = dict.fromkeys(t for t in held if t is not None)
        self._tensors = [t for t in tensors if not t.is_inference()]
        # tensors made under inference_mode have no counter
        self.counted = len(self._tensors) == len(tensors)
        # NOTE: quantised experts may lie in a file: reading them here would fetch them all
        floats = [t.detach().view(-1) for t in tensors if t.dtype in _INTEGERS and _flat(t)]
        few = floats[:: -(-len(floats) // _SAMPLED) or 1]
        self._spots = {
            dtype: [t.view(whole).numpy()[:: -(-len(t) // _SPOTS)] for t in few if t.dtype == dtype]
            for dtype, whole in _INTEGERS.items()
        }
        self._before = self._now()

    def changed(self) -> bool:
        """Whether they differ from the last call, or from when this was made. About 0.4 us a tensor."""
        before, self._before = self._before, self._now()
        return before != self._before

    def _now(self) -> tuple[object, ...]:
        layouts = (list(map(read, self._tensors)) for read in (_VERSION, Tensor.size, Tensor.stride))
        # NOTE: numpy joins small pieces twenty times faster than torch
        return (*layouts, *(np.concatenate(spots).tobytes() for spots in self._spots.values() if spots))


def alien(*roots: nn.Module) -> str | None:
    """The reason why some module below these must be called instead of being read: code of another package. None if all
    may be read."""
    if any(_GLOBAL_HOOKS):
        return "a hook is registered for all modules"
    for name, module in chain.from_iterable(map(walk, roots)):
        where, kind = name or "the model", type(module)
        if kind not in _PLAIN and not kind.__module__.startswith("dsv4.model."):
            return f"{where} is a {kind.__module__}.{kind.__qualname__}"
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{where} has a hook"
        patched = next((key for key in _own(module) if callable(getattr(kind, key, None))), None)
        if patched is not None:
            return f"{where}.{patched} is replaced"
        if getattr(module, "cast", None) is not None:
            return f"{where} casts its inputs"
        if getattr(module, "adapter", None) is not None:
            return f"{where} has an adapter"
    return class_patches()


def _flat(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and tensor.device.type == "cpu" and tensor.is_contiguous()


def _own(module: nn.Module) -> Iterator[str]:
    """Names of a module's attributes that are not parameters, buffers or children."""
    return (name for name in vars(module) if name not in _OF_TORCH)


def _settings(modules: list[nn.Module]) -> list[object]:
    return [vars(module)[name] for module in modules for name in _own(module)]
