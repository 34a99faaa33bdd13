"""Tensors that claim to be on CUDA devices, for tests on machines without one.

Each has its numbers in the CPU's memory and a note of its device. Functions of torch follow CUDA's rules:
they refuse operands on several devices, and put results where the operands are. Numbers on a device are read
only after a copy. What makes the host wait for a device is counted by the function of the package that does.
A recorded graph is the list of kernels, which run again on the same memory when it is replayed. Recording
leaves all numbers as they were, and fails where it would wait for a device or read memory of the CPU.

Times, the order of sums and overlapping streams are not simulated.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

PACKAGE = f"{Path(__file__).parents[1] / 'rqmoe_store'}/"

_CPU = torch.device("cpu")
_DEVICE, _IS_CUDA = torch.Tensor.device.__get__, torch.Tensor.is_cuda.__get__
_CROSSING = {"to", "cpu", "copy_", "__setitem__", "__getitem__"}
"""Functions whose operands may be on several devices."""
_READING = {
    "item", "tolist", "__float__", "__int__", "__bool__", "__index__",
    "nonzero", "bincount", "masked_select", "unique", "equal", "repeat_interleave",
}  # fmt: skip
"""Functions that wait for the device: the result is on the host, or has a size that depends on numbers."""
_PRODUCTS = {"matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "addmv"}


class CudaTensor(torch.Tensor):
    """A tensor in the CPU's memory that claims to be on a CUDA device."""

    place: torch.device

    def __deepcopy__(self, memo: Any) -> Tensor:
        copied = self.detach().clone()
        is_parameter = isinstance(self, nn.Parameter)
        return nn.Parameter(copied, requires_grad=self.requires_grad) if is_parameter else copied

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return CudaDevices.current().call(func, args, kwargs or {})


class _Mode(TorchFunctionMode):
    """Sees calls without a tensor, such as `torch.zeros(3, device="cuda")`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return CudaDevices.current().call(func, args, kwargs or {})


@dataclasses.dataclass(eq=False)
class Stream:
    """Stands for torch.cuda.Stream."""

    device: torch.device

    def __post_init__(self) -> None:
        if self.device.index is None:
            self.device = torch.device("cuda", CudaDevices.current().current_device())

    def wait_stream(self, other: "Stream") -> None:
        """Work is done as soon as it is launched."""

    def synchronize(self) -> None:
        """Work is done as soon as it is launched."""

    def is_capturing(self) -> bool:
        """Whether this thread records."""
        return CudaDevices.current().is_recording()


class Event:
    """Stands for torch.cuda.Event."""

    def record(self, stream: Stream) -> None:
        """Work is done as soon as it is launched."""

    def synchronize(self) -> None:
        """The host waits for the device."""
        CudaDevices.current().waits[f"synchronize in {_caller()}"] += 1


class Graph:
    """Stands for torch.cuda.CUDAGraph: the kernels that were launched while it was recorded."""

    def __init__(self) -> None:
        self.kernels: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        """Run the kernels again, with the same arguments; results go to where they were."""
        CudaDevices.current().calls[f"replay in {_caller()}"] += 1
        with torch.inference_mode(), torch._C.DisableTorchFunction():
            for func, args, kwargs, before in self.kernels:
                after = func(*args, **kwargs)
                for old, new in zip(tree_leaves(before), tree_leaves(after), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class _Kernels(TorchDispatchMode):
    """Notes all kernels, those of backward passes too, and takes back what they change at the end."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = graph
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        """Tensors that were there before, and their numbers then, by their memory."""
        self._made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            for each in self._written(func, args, kwargs):
                memory = each.untyped_storage().data_ptr()
                if memory not in self._made and memory not in self._before:
                    numbers = each.untyped_storage().nbytes() // each.itemsize
                    whole = each.detach().as_strided((numbers,), (1,), 0)
                    self._before[memory] = whole, whole.clone()
            result = func(*args, **kwargs)
        given = {each.untyped_storage().data_ptr() for each in _tensors_in((args, kwargs))}
        made = {each.untyped_storage().data_ptr() for each in _tensors_in(result)} - given
        self._made |= made
        self._graph.kernels.append((func, args, kwargs, result))
        return result

    @staticmethod
    def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
        arguments = func._schema.arguments
        values = {each.name: value for each, value in zip(arguments, args, strict=False)} | kwargs
        is_written = {each.name for each in arguments if each.alias_info and each.alias_info.is_write}
        return _tensors_in([value for name, value in values.items() if name in is_written])

    def take_back(self) -> None:
        """Give all tensors that were there before the numbers they had then."""
        for whole, numbers in self._before.values():
            whole.copy_(numbers)


@dataclasses.dataclass
class _Recording:
    graph: Graph
    device: torch.device
    thread: int
    error_mode: str


class CudaDevices:
    """The simulated devices of this process."""

    _here: ClassVar["CudaDevices | None"] = None

    def __init__(self, count: int) -> None:
        self.count = count
        self.waits: collections.Counter[str] = collections.Counter()
        """Times that the host waited for a device, by place in the package."""
        self.unsafe_products: set[str] = set()
        """Places that multiplied matrices in less than full precision: within autocast, or in TF32."""
        self.largest_bytes: int | None = None
        """Bytes of the largest tensor for which there is memory; None for any."""
        self.refuse_recordings = 0
        """Recordings that are still to fail."""
        self.while_recording: Callable[[], object] = lambda: None
        self.recorded = 0
        self.pools: list[object] = []
        """Memory that recordings share: the pool of each."""
        self.calls: collections.Counter[str] = collections.Counter()
        """Calls of torch that launch something or allocate pinned memory, by place in the package;
        replays of graphs are "replay"."""
        self._recording: _Recording | None = None
        self._pinned: set[int] = set()
        self._current = threading.local()
        self._handles = itertools.count(1)

    @classmethod
    def current(cls) -> "CudaDevices":
        """The devices there are now."""
        assert cls._here is not None, "a tensor has outlived its device"
        return cls._here

    @contextlib.contextmanager
    def in_thread(self) -> Iterator[None]:
        """Make the devices visible in another thread than the one that made them."""
        with _Mode():
            yield

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Call a function of torch by the rules of CUDA."""
        if func is torch.device:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "pin_memory":
            self._pinned.add(args[0].untyped_storage().data_ptr())
            return args[0]
        is_pinned = kwargs.get("pin_memory", False)
        kwargs = {name: value for name, value in kwargs.items() if name != "pin_memory"}
        tensors = _tensors_in((args, kwargs))
        if name == "view_as":  # the other one only has a shape
            tensors = tensors[:1]
        if func in (_DEVICE, _IS_CUDA):
            place = _place_of(args[0])
            return place if func == _DEVICE else place.type == "cuda"
        places = {_place_of(each) for each in tensors if each.ndim or _place_of(each) != _CPU}
        devices = {place for place in places if place.type == "cuda"}
        if len(devices) > 1 or (devices and len(places) > 1 and name not in _CROSSING):
            raise RuntimeError(f"Expected all tensors to be on the same device, but found {places} in {name}")
        if devices and name in ("numpy", "__array__"):
            raise TypeError(f"can't convert {devices} device type tensor to numpy; copy it to the CPU first")
        target = self._target(name, args, kwargs, devices)
        self._note_waits(name, args, kwargs, places, target)
        # Autocast leaves float64 as it is.
        in_float32 = any(each.dtype == torch.float32 for each in tensors)
        if devices and name in _PRODUCTS and in_float32 and not _is_exact():
            self.unsafe_products.add(_caller())
        if target.type == "cuda" or is_pinned:
            self.calls[f"{name} in {_caller()}"] += 1
        result = _on_cpu(func, args, kwargs)
        if is_pinned:
            self._pinned.add(result.untyped_storage().data_ptr())
        if name in ("to", "cpu") and _place_of(args[0]) != target:
            result = result.clone()
        if self.is_recording() and _tensors_in(result):
            on_device = self._recording.device  # type: ignore[union-attr]
            assert target == on_device, f"{name} was launched on {target} while {on_device} records"
        return self._placed(result, tensors, target)

    def is_recording(self) -> bool:
        """Whether this thread records."""
        return self._recording is not None and self._recording.thread == threading.get_ident()

    def _target(self, name: str, args: Any, kwargs: Any, devices: set[torch.device]) -> torch.device:
        """The device of a result."""
        if name == "cpu":
            return _CPU
        named = [kwargs.get("device"), *(args[1:2] if name == "to" else ())]
        for each in named:
            if isinstance(each, Tensor):
                return _place_of(each)
            if isinstance(each, str | torch.device):
                device = torch.device(each)
                if device.type == "cuda" and device.index is None:
                    return torch.device("cuda", self.current_device())
                return device
        return next(iter(devices), _CPU)

    def _note_waits(self, name: str, args: Any, kwargs: Any, places: Any, target: torch.device) -> None:
        waits = name in _READING and any(place.type == "cuda" for place in places)
        if name in _CROSSING and places:
            origin = _place_of(args[0])
            others = {_place_of(each) for each in _tensors_in(args[1:]) if each.ndim}
            blocking = not kwargs.get("non_blocking", False)
            moves = target != origin if name in ("to", "cpu") else bool(others - {origin})
            masked = "item" in name and any(each.dtype == torch.bool for each in _tensors_in(args[1:2]))
            waits = (moves and blocking) or (masked and origin.type == "cuda")
            if moves and self.is_recording() and (blocking or not self._only_pinned(args)):
                raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        if name == "tensor" and target.type == "cuda":
            waits = True
        if not waits:
            return
        self.waits[f"{name} in {_caller()}"] += 1
        recording = self._recording
        if recording is not None and (
            recording.error_mode == "global" or recording.thread == threading.get_ident()
        ):
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    def _only_pinned(self, args: Any) -> bool:
        """Whether a copy reads and writes pinned memory only, as far as that is the CPU's."""
        on_cpu = [each for each in _tensors_in(args) if _place_of(each) == _CPU]
        return all(each.untyped_storage().data_ptr() in self._pinned for each in on_cpu)

    def _placed(self, result: Any, tensors: list[Tensor], target: torch.device) -> Any:
        def place(each: Any) -> Any:
            if not isinstance(each, Tensor) or any(each is other for other in tensors):
                return each
            if target.type != "cuda":
                return each
            if self.largest_bytes is not None and each.nbytes > self.largest_bytes:
                held = {other.untyped_storage().data_ptr() for other in tensors}
                if each.untyped_storage().data_ptr() not in held:  # no view
                    raise torch.OutOfMemoryError("CUDA out of memory.")
            claimed = each.as_subclass(CudaTensor)
            claimed.place = target
            return claimed

        return _mapped(place, result)

    def current_device(self) -> int:
        """Number of the current device of this thread."""
        return int(getattr(self._current, "index", 0))

    @contextlib.contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        """Stands for torch.cuda.device."""
        before = self.current_device()
        self._current.index = device.index
        yield
        self._current.index = before

    @contextlib.contextmanager
    def graph(
        self,
        graph: Graph,
        *,
        pool: object = None,
        stream: Stream | None = None,
        capture_error_mode: str = "global",
    ) -> Iterator[None]:
        """Stands for torch.cuda.graph."""
        if self.refuse_recordings:
            self.refuse_recordings -= 1
            raise RuntimeError("CUDA error: operation would make the legacy stream depend on another one")
        assert self._recording is None, "one recording at a time"
        device = torch.device("cuda", self.current_device())
        assert stream is None or stream.device == device, "a graph records on the current device"
        self._recording = _Recording(graph, device, threading.get_ident(), capture_error_mode)
        kernels = _Kernels(graph)
        try:
            self.while_recording()
            with kernels:
                yield
        finally:
            self._recording = None
            with torch.no_grad(), torch._C.DisableTorchFunction():
                kernels.take_back()
        self.recorded += 1
        self.pools.append(pool)


def _tensors_in(arguments: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _mapped(lambda each: found.append(each) if isinstance(each, Tensor) else None, arguments)
    return found


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """As torch's `tree_map`, in a tenth of the time where all is in tuples, lists and dicts."""
    kind = type(value)
    if kind is tuple:
        return tuple([_mapped(function, each) for each in value])
    if kind is list:
        return [_mapped(function, each) for each in value]
    if kind is dict:
        return {name: _mapped(function, each) for name, each in value.items()}
    return tree_map(function, value) if isinstance(value, tuple | list | dict) else function(value)


def _place_of(tensor: Tensor) -> torch.device:
    return tensor.place if isinstance(tensor, CudaTensor) else _CPU


def _is_exact() -> bool:
    matmul = torch.backends.cuda.matmul
    in_tf32 = matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32
    return not in_tf32 and not torch.is_autocast_enabled("cuda")


def _on_cpu(func: Any, args: Any, kwargs: Any) -> Any:
    """Call the function, on the CPU instead of any CUDA device that is named."""

    def on_cpu(each: Any) -> Any:
        return _CPU if isinstance(each, str | torch.device) and str(each).startswith("cuda") else each

    args, kwargs = map(on_cpu, args), {name: on_cpu(each) for name, each in kwargs.items()}
    is_half = torch.is_autocast_enabled("cuda")
    if not is_half and not torch.is_autocast_enabled("cpu"):  # as nearly always
        return func(*args, **kwargs)
    with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
        return func(*args, **kwargs)


def _caller() -> str:
    """The innermost place of the package that runs."""
    frame = sys._getframe(1)
    while frame is not None:
        if place := _place_in_package(frame.f_code):
            return place
        frame = frame.f_back  # type: ignore[assignment]
    return "a test"


@functools.cache
def _place_in_package(code: types.CodeType) -> str | None:
    path = code.co_filename
    return f"{path.removeprefix(PACKAGE)}, {code.co_name}" if path.startswith(PACKAGE) else None


def _module_to(module: nn.Module, device: Any) -> nn.Module:
    """Stands for nn.Module.to, which gives parameters other numbers but no other type."""
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is not None:
                moved = parameter.detach().to(device)
                each._parameters[name] = nn.Parameter(moved, requires_grad=parameter.requires_grad)
        for name, buffer in each._buffers.items():
            each._buffers[name] = buffer.to(device)
    return module


def _grouped(tensors: list[list[Tensor]], with_indices: bool = False) -> Any:
    """Stands for torch's grouping of an optimizer's tensors, which are on one device and of one type."""
    assert not with_indices
    return {(_place_of(tensors[0][0]), tensors[0][0].dtype): (tensors, [])}


@contextlib.contextmanager
def simulated_cuda(count: int = 1) -> Iterator[CudaDevices]:
    """CUDA devices, as long as the context lasts."""
    devices = CudaDevices(count)
    stand_ins: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: count,
        "current_device": devices.current_device,
        "device": devices.device,
        "is_bf16_supported": lambda including_emulation=True: True,
        "get_device_capability": lambda device=None: (7, 5),  # too old for kernels, which cannot run here
        "mem_get_info": lambda device=None: (2**36, 2**37),
        "empty_cache": lambda: None,
        "synchronize": lambda device=None: None,
        "Stream": Stream,
        "Event": Event,
        "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": lambda device=None: Stream(torch.device("cuda", devices.current_device())),
        "is_current_stream_capturing": devices.is_recording,
        "CUDAGraph": Graph,
        "graph": devices.graph,
        "graph_pool_handle": lambda: (0, next(devices._handles)),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, stand_in in stand_ins.items():
            patch.setattr(torch.cuda, name, stand_in)
        patch.setattr(
            torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cuda")
        )
        patch.setattr(torch.accelerator, "current_stream", lambda device=None: torch.cuda.current_stream())
        patch.setattr(nn.Module, "to", _module_to)
        patch.setattr(torch.optim.Optimizer, "_group_tensors_by_device_and_dtype", staticmethod(_grouped))
        patch.setattr("rqmoe_store.codecs.graphs._places", {})
        patch.setattr(CudaDevices, "_here", devices)
        with _Mode():
            yield devices
