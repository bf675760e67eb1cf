"""The result of a run as a notebook has it: numbers, models, predictions and the page."""

from __future__ import annotations

from html import escape
from pathlib import Path

from torch import nn

from fedlab.inference.export import export_model
from fedlab.inference.models import load_model
from fedlab.inference.predict import Predictor, load_predictor
from fedlab.launch import write_page
from fedlab.runs.directory import RunDirectory
from fedlab.runs.result import Result

HEIGHT = 640  # of the frame in a notebook


class RunResult(Result):
    """A finished, or at least begun, run, with its models; a notebook shows it as table and curves."""

    def model(self, client: str | None = None, server_round: int | None = None) -> nn.Module:
        """Return the global model, or the one that a client predicts with, as a plain torch module on the CPU.

        Parameters
        ----------
        client
            Name of a client; None: the global model.
        server_round
            Round of the checkpoint; None: the newest.

        Raises
        ------
        ConfigError, RunError
            When there is no such client, checkpoint or whole model.
        """
        return load_model(RunDirectory.open(self.directory), client, server_round)

    def predictor(self, client: str | None = None, server_round: int | None = None) -> Predictor:
        """Return what classifies image files in the place of a client.

        Raises
        ------
        ConfigError, RunError
            When there is no such client or checkpoint, or the workload does not classify images.
        """
        return load_predictor(self.directory, client, server_round)

    def export(self, out: Path | str, client: str | None = None, server_round: int | None = None) -> Path:
        """Write a model for other programs, weights (``.safetensors``) or weights and operations (``.onnx``).

        Raises
        ------
        ConfigError, RunError
            As :func:`fedlab.inference.export.export_model`.
        """
        return export_model(self.directory, Path(out), client, server_round)

    def report(self) -> Path:
        """Write the run's page anew, with what the models predict for the clients, and return its path.

        Raises
        ------
        RunError
            When it cannot be written.
        """
        write_page(self, with_predictions=True)
        return RunDirectory(self.directory).page

    def _repr_html_(self) -> str:
        """Return the summary, the clients' table and the curves of the primary metrics, for a notebook.

        They are a page of their own in a frame, so that styles of page and notebook do not mix.
        """
        from fedlab.report.run_page import render_excerpt  # with matplotlib, which a run does not need

        page = escape(render_excerpt(self), quote=True)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: {HEIGHT}px; border: 0"></iframe>'
