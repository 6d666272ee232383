"""Hooks of NNCF run without naming every operation anew.

NNCF finds an operation's hooks by its name, which it makes from the stack of modules at every call of every operation;
in a training step of a small quantized network that takes as long as the network. The operations of a network that can
be exported are the same at every call, so their names are noted once and the hooks are then found by counting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from nncf.torch.function_hook import get_hook_storage
from nncf.torch.function_hook.handle_inner_functions import get_handle_inner_function
from nncf.torch.function_hook.hook_executor_mode import IGNORED_FN_NAMES, FunctionHookMode
from nncf.torch.function_hook.hook_storage import HookStorage
from nncf.torch.function_hook.wrapper import ForwardWithHooks
from torch import nn
from torch.overrides import TorchFunctionMode

from edgeattn.errors import ModelError

__all__ = ["replay_hooks"]

_Hook = Callable[[Any], Any]
_IGNORED = frozenset(IGNORED_FN_NAMES)


class _Call(NamedTuple):
    """One operation: what is called, what is done to its arguments by position, and to its result."""

    function: str
    before: tuple[tuple[int, _Hook], ...]
    after: tuple[_Hook, ...]


def replay_hooks(wrapped: nn.Module) -> None:
    """Make a module that NNCF wrapped, and that has its hooks, find them by counting, from its second call on.

    The results are the same, bit for bit. Hooks may stand before a positional tensor argument and behind an operation
    with one result. None may be added afterwards.

    Args:
        wrapped: Of NNCF's ``wrap_model``; takes one image batch and runs the same operations at every call, as long as
            the same of its modules are in training mode.
    """
    forward: Any = wrapped.forward
    del wrapped.forward
    wrapped.forward = _ReplayingForward(wrapped, forward.orig_forward)


class _ReplayingForward(ForwardWithHooks):  # type: ignore[misc]
    """Calls of the module; in its attributes, by which modules are in training mode, the operations.

    Attributes:
        convolution: What computes ``torch.conv2d`` once the operations are known; hooks act on its arguments and
            result.
    """

    convolution: Callable[..., torch.Tensor] = staticmethod(torch.conv2d)

    def __call__(self, images: torch.Tensor) -> Any:
        modules = self.__dict__.get("modules")
        if modules is None:  # not when this is made: in a copy the model is not whole by then
            self.__dict__ |= {"modules": list(self.model.modules()), "known": {}}
            modules = self.__dict__["modules"]
        known: dict[tuple[bool, ...], tuple[tuple[_Hook, ...], list[_Call]]] = self.__dict__["known"]
        key = tuple(module.training for module in modules)
        if key not in known:
            with _Recording(model=self.model, hook_storage=get_hook_storage(self.model)) as mode:
                (named,), _ = mode.process_model_inputs((images,), {})
                result = mode.process_model_outputs(self.orig_forward(named))
            known[key] = mode.input_hooks, mode.calls
            return result
        at_input, calls = known[key]
        for hook in at_input:
            images = hook(images)
        with _Replaying(calls, self.convolution) as replaying:
            result = self.orig_forward(images)
        replaying.finish()
        return result

    def __reduce__(self) -> Any:
        # What was noted belongs to this module's hooks; a copy has its own.
        return type(self), (self.model, self.orig_forward), (self.model, self.orig_forward, None)


class _Recording(FunctionHookMode):  # type: ignore[misc]
    def __init__(self, model: nn.Module, hook_storage: HookStorage) -> None:
        super().__init__(model, hook_storage)
        self.calls: list[_Call] = []
        self.input_hooks: tuple[_Hook, ...] = ()
        self._in_hook = False

    def get_next_op_call_name(self, fn_name: str) -> str:
        name: str = super().get_next_op_call_name(fn_name)
        if not self._in_hook:
            before = self._hooks(self.hook_storage.pre_hooks, name)
            after = self._hooks(self.hook_storage.post_hooks, name)
            if any(port for port, _ in after):
                raise ModelError(f"The operation {name} has several results; no hook can stand behind one.")
            self.calls.append(_Call(fn_name, tuple(before), tuple(hook for _, hook in after)))
        return name

    def execute_hooks_for_model_input(self, name: str, value: Any) -> Any:
        self.input_hooks = tuple(hook for _, hook in self._hooks(self.hook_storage.post_hooks, name))
        self._in_hook = True
        try:
            return super().execute_hooks_for_model_input(name, value)
        finally:
            self._in_hook = False

    def execute_pre_hooks(self, args: tuple[Any, ...], kwargs: dict[str, Any], op_meta: Any) -> Any:
        if self._in_hook:
            return args, kwargs
        for port, _ in self.calls[-1].before:
            if port >= len(args) or not all(isinstance(value, torch.Tensor) for value in args[: port + 1]):
                raise ModelError(
                    f"Argument {port} of {op_meta.op_name} is no positional tensor; it has a hook."
                )
        self._in_hook = True
        try:
            return super().execute_pre_hooks(args, kwargs, op_meta)
        finally:
            self._in_hook = False

    def execute_post_hooks(self, output: Any, op_meta: Any) -> Any:
        if self._in_hook:
            return output
        self._in_hook = True
        try:
            return super().execute_post_hooks(output, op_meta)
        finally:
            self._in_hook = False

    @staticmethod
    def _hooks(storage: nn.ModuleDict, name: str) -> list[tuple[int, _Hook]]:
        found: list[tuple[int, _Hook]] = []
        # As `HookStorage` keys them: an operation and a port.
        for key, hooks in storage.items():
            operation, port = key.rsplit("__", 1)
            if operation == name.replace(".", ":") and isinstance(hooks, nn.ModuleDict):
                found += [(int(port), hook) for hook in hooks.values()]
        return found


class _Replaying(TorchFunctionMode):
    def __init__(self, calls: Sequence[_Call], convolution: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self._calls = calls
        self._convolution = convolution
        self._next = 0

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        inner = get_handle_inner_function(func)
        if inner is not None:
            with self:
                return inner(*args, **kwargs)
        name = func.__name__
        if name in _IGNORED:
            return func(*args, **kwargs)
        if self._next == len(self._calls) or self._calls[self._next].function != name:
            self._refuse(name)
        _, before, after = self._calls[self._next]
        self._next += 1
        if before:
            values = list(args)
            for port, hook in before:
                values[port] = hook(values[port])
            args = tuple(values)
        if func is torch.conv2d:
            func = self._convolution
        result = func(*args, **kwargs)
        for hook in after:
            result = hook(result)
        return result

    def finish(self) -> None:
        """Refuse a network that ran fewer operations than when they were noted."""
        if self._next < len(self._calls):
            self._refuse("its end")

    def _refuse(self, got: str) -> None:
        wanted = self._calls[self._next].function if self._next < len(self._calls) else "its end"
        raise ModelError(
            f"The network runs other operations than at its first call: operation {self._next} was {wanted}, now "
            f"it is {got}. A network whose operations depend on its input cannot be quantized; make them fixed."
        )
