"""Exceptions of an app in the words of the person who runs it: a package is missing, data cannot be fetched."""

from __future__ import annotations

import re
import shlex
import sys
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from fedlab.errors import FedlabError
from fedlab.flower_apps.project import FILE, FlowerProject, without_version

NETWORK = {"requests", "httpx", "httpcore", "urllib3", "aiohttp", "huggingface_hub", "urllib", "socket"}
NO_ANSWER = {"DatasetNotFoundError", "OfflineModeIsEnabled", "gaierror"}  # raised by libraries that fetch
SOURCES = ("dataset", "dataset_name", "_dataset_name", "repo_id", "path", "url", "model_name")  # variables that name it
QUOTED = re.compile(r"'([\w.-]+/[\w./-]+)'")  # 'owner/name'
DISTRIBUTIONS = {"sklearn": "scikit-learn", "cv2": "opencv-python", "PIL": "pillow", "yaml": "pyyaml"}


def explain(error: BaseException, project: FlowerProject) -> str:
    """Return a sentence about an exception of an app: what is missing and what to do; "" for a bug of the app.

    Parameters
    ----------
    error
        As it was caught, with its causes.
    """
    chain = list(_causes(error))
    for one in chain:
        if isinstance(one, FedlabError):
            return str(one)
        if isinstance(one, ModuleNotFoundError) and one.name:
            return missing_package(one.name, project)
    if not any(_is_network(one) for one in chain):
        return ""
    what = next((name for one in chain for name in (*QUOTED.findall(str(one)), _source(one)) if name), "")
    return (
        f"{project.name} asks for {repr(what) if what else 'something'} on another machine, which cannot be reached "
        f"from here ({_first_line(error)}). Fetch it once where there is a network, by the same code, and copy the "
        "cache here (HF_HOME for the Hugging Face Hub, else the folder that the app names); or let the app's code read "
        "a local copy"
    )


def missing_package(module: str, project: FlowerProject) -> str:
    """Return the sentence about a module that is not installed: what to install, as the project writes it."""
    top = module.partition(".")[0]
    if (project.path / top).is_dir() or (project.path / f"{top}.py").is_file():
        return f"{project.name} imports {module!r}, which is not in {project.path}; {FILE} may name the wrong module"
    name = DISTRIBUTIONS.get(top, top.replace("_", "-"))
    asked = project.requirement(name)
    pinned = f" ({FILE} asks for {asked!r}; its version is not checked here)" if asked else ""
    return (
        f"{project.name} needs the package {top!r}, which is not installed in this environment{pinned}; install it: "
        f"`{sys.executable} -m pip install {shlex.quote(without_version(asked) or name)}`"
    )


def describe(error: BaseException, project: FlowerProject) -> str:
    """Return type, text and place of an exception in one line: the innermost line of the app's own files."""
    lines = traceback.extract_tb(error.__traceback__)
    own = [line for line in lines if line.filename.startswith(str(project.path))]
    place = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {_first_line(error)}{place}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_network(error: BaseException) -> bool:
    """Return True for an error of the network: by its class, or raised by a library that fetches."""
    modules = [kind.__module__ for kind in type(error).__mro__]
    modules += [str(frame.f_globals.get("__name__", "")) for frame in list(_frames(error.__traceback__))[-1:]]
    known = any(kind.__name__ in NO_ANSWER for kind in type(error).__mro__)
    return known or isinstance(error, ConnectionError) or any(name.partition(".")[0] in NETWORK for name in modules)


def _source(error: BaseException) -> str:
    """Return what was asked for: the outermost variable of the call stack that names it."""
    for frame in _frames(error.__traceback__):
        holder: Any = frame.f_locals.get("self")
        places = (frame.f_locals, vars(holder) if hasattr(holder, "__dict__") else {})
        for name in SOURCES:
            for place in places:
                if isinstance(found := place.get(name), str) and found and "/site-packages/" not in found:
                    return found
    return ""


def _frames(trace: TracebackType | None) -> Iterator[Any]:
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
