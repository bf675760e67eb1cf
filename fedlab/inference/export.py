"""A run's model as a file for other programs: weights as safetensors, or weights and operations as ONNX.

**Source**: https://huggingface.co/docs/safetensors: the length of the header (8 bytes, little-endian), the header as
JSON, then the bytes of all tensors.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from fedlab.errors import ConfigError, os_error_sentence
from fedlab.files import write_atomically
from fedlab.inference.models import load_model
from fedlab.registry import load_run_config
from fedlab.runs.directory import RunDirectory

TYPES = {  # names of safetensors
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
NEEDED = ("onnx", "onnxscript")  # packages of torch's exporter
ALIGNMENT = 8  # bytes


def export_model(directory: Path, out: Path, client: str | None = None, server_round: int | None = None) -> Path:
    """Write a model of a run, in the format that the file's name says, and return the path.

    Parameters
    ----------
    client, server_round
        As of :func:`fedlab.inference.models.load_model`.

    Raises
    ------
    ConfigError
        When the format is unknown, a package for it is missing, the model cannot be written so, or there is no such
        client or round.
    RunError
        When there is no model.
    """
    if out.suffix not in (".safetensors", ".onnx"):
        raise ConfigError(f"{out} names no format; write a file that ends in .safetensors or .onnx")
    run = RunDirectory.open(directory)
    model = load_model(run, client, server_round)
    facts = {"run": run.path.name, "client": client or "", "framework": "pt"}
    content = safetensors(model.state_dict(), facts) if out.suffix == ".safetensors" else onnx(model, run)
    try:
        write_atomically(out, content)
    except OSError as error:
        raise ConfigError(f"the model cannot be written: {os_error_sentence(error)}") from None
    return out


def safetensors(state: Mapping[str, Tensor], facts: Mapping[str, str]) -> bytes:
    """Return tensors by name as the content of a safetensors file, with facts by name as its metadata."""
    header: dict[str, object] = {"__metadata__": dict(facts)}
    blocks, start = list[bytes](), 0
    for name, tensor in state.items():
        block = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        shape = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape)}
        header[name] = {**shape, "data_offsets": [start, start + len(block)]}
        start += len(block)
        blocks.append(block)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text + b"".join(blocks)


def onnx(model: nn.Module, run: RunDirectory) -> bytes:
    """Return a model as the content of an ONNX file: input ``x`` (batch, ...), output ``y``.

    Raises
    ------
    ConfigError
        When a package is missing, the workload has no input ``x``, or torch cannot express the model.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(f"ONNX needs {' and '.join(missing)}; `pip install {' '.join(missing)}`")
    columns = load_run_config(run.config_file).workload.data(0, "test")[:2]
    if "x" not in columns:
        raise ConfigError(f"the model of {run.path} takes no input 'x' alone; write its weights to a .safetensors file")
    try:
        with TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's exporter, about itself
            importlib.import_module("onnxscript")
            axes = {"x": {0: torch.export.Dim.DYNAMIC}}
            program = torch.onnx.export(
                model,
                (columns["x"],),
                input_names=["x"],
                output_names=["y"],
                dynamic_shapes=axes,
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            program.save(Path(folder) / "model.onnx", include_initializers=True)
            return (Path(folder) / "model.onnx").read_bytes()
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"torch cannot write this model as ONNX ({reason}); write its weights to a .safetensors file"
        ) from error
