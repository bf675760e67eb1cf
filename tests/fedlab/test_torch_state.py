"""A caller's settings of torch change no bit of a run, and are as they were after it."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

import fedlab
import toy
from fedlab.precision import computing_in
from fedlab.torch_state import usual_torch_state
from tables import put


@contextmanager
def default(setter, value, usual):
    setter(value)
    try:
        yield
    finally:
        setter(usual)


@contextmanager
def onednn_off():
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = True


BACKENDS = torch.backends
NEWER = {  # those that inherit last
    "all": BACKENDS,
    "cudnn": BACKENDS.cudnn,
    "matmul": BACKENDS.cuda.matmul,
    "conv": BACKENDS.cudnn.conv,
    "rnn": BACKENDS.cudnn.rnn,
    "mkldnn matmul": BACKENDS.mkldnn.matmul,
    "mkldnn conv": BACKENDS.mkldnn.conv,
}


def newer():
    return {name: setting.fp32_precision for name, setting in NEWER.items()}


@contextmanager
def fp32_precision(**values):
    """Set torch's newer settings, and put them back in a way that does not rely on what is tested."""
    usual = newer()
    for name, value in values.items():
        NEWER[name.replace("_", " ")].fp32_precision = value
    try:
        yield
    finally:
        for name, value in usual.items():
            NEWER[name].fp32_precision = value


def older(read):
    try:
        return read()
    except RuntimeError as error:
        return "mix of the legacy and new APIs" in str(error)


SETTINGS = {
    "float64": lambda: default(torch.set_default_dtype, torch.float64, torch.float32),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default device": lambda: torch.device("meta"),
    "matmul precision": lambda: default(torch.set_float32_matmul_precision, "medium", "highest"),
    "subnormals": lambda: default(torch.set_flush_denormal, True, False),
    "onednn": onednn_off,
    "fp32_precision": lambda: fp32_precision(all="bf16"),
    "fp32_precision of products": lambda: fp32_precision(matmul="tf32"),
    "fp32_precision of convolutions": lambda: fp32_precision(conv="ieee", mkldnn_conv="tf32"),
}


def state():
    return (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_device(),
        older(torch.get_float32_matmul_precision),
        newer(),
        bool(torch.tensor([1e-40], dtype=torch.float32, device="cpu") * 1),
        torch.backends.mkldnn.enabled,
        older(lambda: torch.backends.cudnn.allow_tf32),
    )


def effect(values):
    """Return a state in which float32 is written in one way where nothing more general says otherwise."""
    return [{k: "ieee" if v == "none" else v for k, v in x.items()} if isinstance(x, dict) else x for x in values]


@pytest.mark.parametrize("setting", list(SETTINGS))
def test_a_run_gives_the_same_bits_inside_any_setting_and_restores_it(tmp_path, monkeypatch, setting):
    put(monkeypatch, "workload", "blobs", toy.SPEC)
    preset = toy.write_preset(tmp_path, rounds=1)
    with SETTINGS[setting]():
        before = state()
        inside = fedlab.run(preset, runs=tmp_path / "runs")
        assert state() == before
    assert inside.weights_sha256 == fedlab.run(preset, runs=tmp_path / "runs").weights_sha256


@pytest.mark.parametrize("setting", list(SETTINGS))
def test_the_settings_are_those_of_a_fresh_process(setting):
    usual = state()
    with SETTINGS[setting]():
        other = state()
        assert other != usual
        with usual_torch_state():
            assert effect(state()) == effect(usual)
        assert state() == other
    assert state() == usual


def test_an_error_restores_the_settings_too():
    with torch.no_grad():
        with pytest.raises(ValueError, match="here"), usual_torch_state():
            raise ValueError("here")
        assert not torch.is_grad_enabled()


def test_a_thread_that_enters_while_another_computes_puts_back_what_was_before_both():
    with onednn_off(), ThreadPoolExecutor(1) as other:
        usual, entered = state(), usual_torch_state()
        with usual_torch_state():
            with computing_in("float32", torch.device("cpu")):
                other.submit(entered.__enter__).result()
            inside = state()
        assert state() == inside != usual  # the other thread goes on
        other.submit(entered.__exit__, None, None, None).result()
        assert state() == usual


def test_a_body_inside_a_body_has_the_usual_settings_too():
    with usual_torch_state():
        usual = state()
        with onednn_off(), usual_torch_state():
            assert state() == usual


@pytest.mark.engine
def test_what_inherits_torchs_general_precision_inherits_it_after_a_run_too():
    code = """
import torch
from fedlab.precision import computing_in
from fedlab.torch_state import usual_torch_state
for tf32 in (True, False):
    torch.backends.fp32_precision = "tf32" if tf32 else "none"
    with usual_torch_state(), computing_in("auto", torch.device("cpu")):
        assert torch.get_float32_matmul_precision() == "highest" and torch.backends.cudnn.allow_tf32
torch.backends.fp32_precision = "ieee"
conv, rnn, matmul = torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.mkldnn.matmul
assert [x.fp32_precision for x in (conv, rnn, matmul)] == ["ieee"] * 3
"""
    subprocess.run([sys.executable, "-c", code], check=True)
