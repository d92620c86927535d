"""The class of a crash, from its exception."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from minimind.session import _classify


@pytest.mark.parametrize(("error", "class_"), [
    (torch.OutOfMemoryError("CUDA out of memory."), "OOM_CUDA"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "OOM_CUDA"),
    (MemoryError(), "OOM_HOST"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"), "OOM_HOST"),
    (torch.AcceleratorError("CUDA error: the launch timed out and was terminated"), "GPU"),
    (RuntimeError("CUDA error: unspecified launch failure"), "GPU"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "GPU"),
    (dist.DistBackendError("NCCL error: unhandled cuda error"), "NCCL"),
    (dist.DistStoreError("wait timeout after 300000ms"), "NCCL"),
    (RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:40"), "NCCL"),
    (RuntimeError("Timed out waiting 1800000ms for recv operation to complete"), "NCCL"),
    (ConnectionResetError(104, "Connection reset by peer"), "NCCL"),
    (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), "UNKNOWN"),
    (ValueError("NCCL is only a word here"), "UNKNOWN"),
])
def test_an_exception_tells_its_class(error, class_):
    found = _classify(error)
    assert found["class"] == class_ and found["message"].endswith(".") and found["hint"]
