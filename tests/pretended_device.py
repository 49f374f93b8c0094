"""A device that is not there, such as a Mac's GPU: tensors that call themselves its own, with their numbers on the CPU.

    with pretended_device():                # in a process of its own: PyTorch knows the device until the process ends
        network.to(DEVICE)

What a GPU refuses is refused: float64, which Apple's MPS does not have, and tensors of two devices in one operation.
Copies to it that do not wait hold garbage as soon as their source is gone (pytorch/pytorch#189690 is that of MPS).
"""
import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

DEVICE = "pretended"
aten = torch.ops.aten
BETWEEN_DEVICES = (aten.copy_.default, aten._to_copy.default)


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.float16, torch.bfloat16]


class _OnDevice(torch.Tensor):
    @staticmethod
    def __new__(cls, values):
        return torch.Tensor._make_wrapper_subclass(
            cls, values.size(), strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype,
            device=f"{DEVICE}:0")

    def __init__(self, values):
        self.values = values

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), options=None):
        return _run(function, args, options or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), options=None):
        return _run(function, args, options or {})


def _run(function, args, options):
    tensors = [value for value in tree_leaves((args, options)) if isinstance(value, torch.Tensor)]
    ours = {id(tensor.values): tensor for tensor in tensors if isinstance(tensor, _OnDevice)}
    asked = options.get("device") and torch.device(options["device"]).type
    if ours and function not in BETWEEN_DEVICES and not all(
            isinstance(tensor, _OnDevice) or not tensor.ndim for tensor in tensors):
        raise RuntimeError(f"{function}: tensors on two devices")
    assert not (options.get("non_blocking") and asked == DEVICE), f"{function}: does not wait for its source"
    to_device = asked == DEVICE or (bool(ours) and asked is None)
    if function is aten.copy_.default:
        to_device = isinstance(args[0], _OnDevice)
    if asked == DEVICE:
        options = {**options, "device": "cpu"}

    def inside(value):
        return value.values if isinstance(value, _OnDevice) else value

    def outside(value):
        if not isinstance(value, torch.Tensor) or not to_device:
            return value
        if value.dtype == torch.float64:
            raise TypeError(f"{function}: the device has no float64")
        return ours[id(value)] if id(value) in ours else _OnDevice(value)

    return tree_map(outside, function(*tree_map(inside, args), **tree_map(inside, options)))


@contextlib.contextmanager
def pretended_device():
    """Let the device be there within this block."""
    _setup_privateuseone_for_python_backend(DEVICE, _Module())
    with _Mode():
        yield
