"""Notices that modules are no longer what they were: replaced, hooked, patched, or with other weights.

Fast paths read weights where they lie and never call the modules that hold them. They may do so only while calling
would give the same, and this is how they know: a look at everything once, then a comparison that takes about 0.1 us a
module and 0.1 us a tensor.
"""

from collections.abc import Iterator
from itertools import chain
from operator import is_

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from dsv4.model.layers import Changes, class_patches, classes_of

_PLAIN = (nn.Embedding, nn.ModuleList)
_OF_TORCH = frozenset(vars(nn.Module()))
_GLOBAL_HOOKS = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)
_SAMPLED, _SPOTS = 512, 4  # tensors and numbers of each that are read to notice writes around the version counter


class Watch:
    """What some modules were when it looked. One that has not looked finds everything changed."""

    def __init__(self) -> None:
        self._modules: list[nn.Module] = []

    def __reduce__(self) -> tuple:
        return type(self), ()  # a copied model is another one

    def look(self, *roots: nn.Module) -> None:
        """Take them as they are now, with everything below them."""
        modules = list(dict.fromkeys(chain.from_iterable(root.modules() for root in roots)))
        self._types = list(map(type, modules))
        self._hooks = [*_GLOBAL_HOOKS, *(h for m in modules for h in (m._forward_hooks, m._forward_pre_hooks))]
        self._hooked = list(map(len, self._hooks))
        dicts = [part for m in modules for part in (m._modules, m._parameters, m._buffers) if part]
        self._dicts = [*dicts, *map(vars, modules)]
        self._sizes = list(map(len, self._dicts))
        self._values = [part.values() for part in dicts]
        self._held = list(chain.from_iterable(self._values))
        self._tensors = [value for value in self._held if isinstance(value, Tensor)]
        self._addresses = list(map(Tensor.data_ptr, self._tensors))
        self._memory = [tensor.detach() for tensor in self._tensors]  # stays readable after `parameter.data = other`
        lists = [m._modules for m in modules if isinstance(m, nn.ModuleList)]
        self._lists = [part.values() for part in lists]
        self._listed = list(chain.from_iterable(self._lists))
        self._methods = [vars(cls).values() for cls in classes_of(modules)]
        self._functions = list(chain.from_iterable(self._methods))
        self._count, self._settings = Changes.count, _settings(modules)
        self._modules = modules

    def stirred(self) -> bool:
        """Whether an attribute of any layer was set, a hook came or went, or a list of modules has others: what is
        usual, in little time. `changed` sees the rest."""
        return (
            not self._modules
            or self._count != Changes.count
            or list(map(len, self._hooks)) != self._hooked
            or list(chain.from_iterable(self._lists)) != self._listed
        )

    def changed(self) -> bool:
        """Whether types, hooks, children, settings, or the place of any tensor differ from what was looked at."""
        if not self._modules:
            return True
        same = (
            list(map(len, self._hooks)) == self._hooked
            and list(map(type, self._modules)) == self._types
            and list(map(len, self._dicts)) == self._sizes
            and all(map(is_, chain.from_iterable(self._values), self._held))
            and list(map(Tensor.data_ptr, self._tensors)) == self._addresses
            and all(map(is_, chain.from_iterable(self._methods), self._functions))
        )
        if same and self._count != Changes.count:
            settings = _settings(self._modules)
            same = len(settings) == len(self._settings) and all(map(is_, settings, self._settings))
            self._count = Changes.count if same else self._count
        return not same


class WeightWatch:
    """Notices that weights were written to in place, by their version counters and, for writes around these
    (`parameter.data`), by reading a few numbers of each. A write of single numbers through `data` escapes it."""

    def __init__(self, *roots: nn.Module) -> None:
        tensors = dict.fromkeys(chain.from_iterable(chain(r.parameters(), r.buffers()) for r in roots))
        self._tensors = [t for t in tensors if not t.is_inference()]
        # tensors made under inference_mode have no counter
        self.counted = len(self._tensors) == len(tensors)
        floats = [t.detach() for t in tensors if t.dtype in (torch.float32, torch.bfloat16) and _flat(t)]
        few = floats[:: -(-len(floats) // _SAMPLED) or 1]
        self._spots = {
            dtype: [t.view(-1)[:: -(-t.numel() // _SPOTS)] for t in few if t.dtype == dtype]
            for dtype in (torch.float32, torch.bfloat16)
        }
        self._versions, self._shapes, self._read = self._now()

    def changed(self) -> bool:
        """Whether they differ from the last call, or from when this was made. About 1 us a tensor."""
        before = self._versions, self._shapes, self._read
        self._versions, self._shapes, self._read = self._now()
        numbers = all(map(torch.equal, before[2], self._read))
        return not numbers or before[:2] != (self._versions, self._shapes)

    def _now(self) -> tuple[list[int], list[tuple], list[Tensor]]:
        layouts = [(t.shape, t.stride(), t.dtype) for t in self._tensors]
        read = [torch.cat(spots).view(torch.int16) for spots in self._spots.values() if spots]
        return [t._version for t in self._tensors], layouts, read


def alien(*roots: nn.Module) -> str | None:
    """Why some module below these must be called rather than read: what is not this package's own code. None: all may
    be read."""
    if any(_GLOBAL_HOOKS):
        return "a hook is registered for all modules"
    for name, module in chain.from_iterable(root.named_modules() for root in roots):
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
    return class_patches()


def _flat(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and tensor.device.type == "cpu" and tensor.is_contiguous()


def _own(module: nn.Module) -> Iterator[str]:
    """Names of what was set on a module besides parameters, buffers and children."""
    return (name for name in vars(module) if name not in _OF_TORCH)


def _settings(modules: list[nn.Module]) -> list[object]:
    return [vars(module)[name] for module in modules for name in _own(module)]
