"""Errors of torch about a device, as a person reads them."""

from __future__ import annotations

import pytest
import torch

from fedlab.device_errors import device_error_sentence, explained
from fedlab.errors import RunError

CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.25 GiB is free."
    " Including non-PyTorch memory, this process has 77.85 GiB memory in use."
)
CPU = (
    "[enforce fail at alloc_cpu.cpp:114] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "80000000000 bytes. Error code 12"
)
KERNEL = "nll_loss2d_forward_out_cuda_template does not have a deterministic implementation, but you set ..."
DRIVER = "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU."


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (torch.OutOfMemoryError(CUDA), "GPU 0 is full: 2.00 GiB were asked for, 1.25 GiB of 79.11 GiB are free; "),
        (
            torch.OutOfMemoryError("Allocation on device 0 would exceed"),
            "the GPU is full (Allocation on device 0 would",
        ),
        (RuntimeError(CPU), "memory of this machine is full: 80.0 GB were asked for"),
        (
            RuntimeError("Storage size calculation overflowed with sizes=[8, 3, 2000000032, 2000000032]"),
            "the memory of no machine would do for a tensor of this size",
        ),
        (RuntimeError(KERNEL), "nll_loss2d_forward_out_cuda_template has no deterministic kernel on a GPU"),
        (RuntimeError(DRIVER), "torch finds no usable GPU (Found no NVIDIA driver on your system"),
    ],
)
def test_a_sentence_says_what_was_asked_and_what_to_do(error, sentence):
    found = explained(error)
    assert isinstance(found, RunError) and sentence in str(found)
    assert any(remedy in str(found) for remedy in ("batch_size", "device=cpu"))


@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), ValueError(CUDA), KeyboardInterrupt()])
def test_other_errors_stay_as_they_are(error):
    assert device_error_sentence(error) == ""
    assert explained(error) is error


def test_what_torch_says_where_the_memory_of_the_machine_is_full_is_understood():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert "memory of this machine is full: 1152921504.6 GB" in device_error_sentence(raised.value)
