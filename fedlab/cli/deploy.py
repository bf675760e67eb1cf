"""Commands of a federation over several machines: ``fedlab certs | serve | join | ping | client-status``."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from fedlab.cli.common import show_rows, start_run
from fedlab.cli.consoles import stdout, warn, write_line
from fedlab.errors import ConfigError, RunError
from fedlab.files import expand_user

logger = logging.getLogger(__name__)

PLAIN = (
    "--insecure: plain text without authentication; everybody who can reach the server can read, join and send anything"
)


def serve(
    preset: Annotated[str, typer.Argument(help="Name of a preset (see `fedlab list`), or a TOML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Options, e.g. rounds=3.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="HOST:PORT at which clients reach this server; default 0.0.0.0:9092.")
    ] = None,
    certs: Annotated[Path | None, typer.Option(help="Folder of `fedlab certs`; default certs.")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Plain text without authentication. For a network you trust.")
    ] = False,
    wait: Annotated[
        float | None, typer.Option(help="Seconds to wait until all clients are connected; default 600.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="The server's: auto, cpu, cuda or cuda:N.")] = None,
    seed: Annotated[int | None, typer.Option(help="Run seed.")] = None,
    runs: Annotated[Path, typer.Option(help="Folder for the run directory.")] = Path("runs"),
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the run directory, at the end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Events as JSON lines, the result as the last one.")] = False,
) -> None:
    """Serve a run to clients on other machines: wait for them, run, write the run directory, stop.

    Before the first time, `fedlab certs` makes the credentials. On each client: `fedlab join HOST:PORT --domain NAME`.

    Example: `fedlab serve dualadapt-digits digits.targets=usps,optdigits --wait 900`
    """
    from fedlab import launch
    from fedlab.config.engine_options import SERVE_TIMEOUT, GrpcConfig
    from fedlab.config.presets import parse_overrides
    from fedlab.config.sections import Value

    given = parse_overrides(overrides or [])
    folder = str(certs or given.get("grpc.certificates", GrpcConfig.certificates))
    options: dict[str, Value | None] = {
        "engine": "grpc",
        "grpc.address": address,
        "grpc.certificates": str(expand_user(folder).resolve()),  # a resumed run may start elsewhere
        "grpc.insecure": insecure or None,
        "comm.connect_timeout": wait if wait is not None else given.get("comm.connect_timeout", SERVE_TIMEOUT),
        "device": device,
        "seed": seed,
    }
    config = launch.prepare(preset, {**given, **{key: value for key, value in options.items() if value is not None}})
    grpc: GrpcConfig = config.engine
    if grpc.insecure:
        warn(PLAIN)
    start_run(config, runs, f"serving at {grpc.address}", quiet, as_json)


def join(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where the server is.")],
    domain: Annotated[
        str, typer.Option(help="Which client of the run this is; default: the only key in CERTS/clients.")
    ] = "",
    data: Annotated[
        Path | None,
        typer.Option(help="Your own data, instead of the domain's set: a folder of images, or a SMILES file."),
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of full data sets; default $FEDLAB_DATA, else the sets in the package.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    certs: Annotated[
        Path, typer.Option(help="Folder with ca.crt and clients/NAME.key, copied from the server's machine.")
    ] = Path("certs"),
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Plain text without authentication. For a network you trust.")
    ] = False,
    allow: Annotated[
        str, typer.Option(help="Strategies that this client takes part in, with commas; default: its first run's.")
    ] = "",
    allow_upload: Annotated[
        str,
        typer.Option(help="Largest upload in training: nothing, head or model; default: its first run's."),
    ] = "",
    max_rounds: Annotated[
        int, typer.Option(min=0, help="Most rounds of a run that it takes part in; default: its first run's.")
    ] = 0,
    max_epsilon: Annotated[
        float,
        typer.Option(min=0, help="Privacy budget of this client over all runs, at delta 1e-5; default: none."),
    ] = 0.0,
    state_dir: Annotated[Path | None, typer.Option(help="Folder for the model and logs; default clients/NAME.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Leave after the last round of a run was tested.")] = False,
    give_up_after: Annotated[
        float | None, typer.Option(help="Seconds without a server before giving up; default: never.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Join a run of `fedlab serve` with this machine's data, and reconnect when the server goes away.

    Example: `fedlab join lab.example.org:9092 --domain usps --device cuda:0`
    """
    from fedlab.comm.credentials import is_world_readable, sole_client
    from fedlab.deploy import client as deployed
    from fedlab.deploy.probe import parse_address

    parse_address(address)
    folder = None if insecure else expand_user(certs).resolve()
    client = domain or (sole_client(folder) if folder else "")
    if not client:
        raise ConfigError("which client is this? Give --domain NAME")
    node = {"domain": client, "device": device}
    root = data_root or (Path(os.environ["FEDLAB_DATA"]) if os.environ.get("FEDLAB_DATA") else None)
    for key, path in (("data-root", root), ("data-folder", data)):
        if path is not None:
            if not (expand_user(path).is_dir() or (key == "data-folder" and expand_user(path).is_file())):
                what = "neither a folder nor a file" if key == "data-folder" else "not a folder"
                raise ConfigError(f"{path} is {what} (--{key.replace('-folder', '')})")
            node[key] = str(expand_user(path).resolve())
    node |= _consent(allow, allow_upload, max_rounds, max_epsilon)
    if folder is None:
        warn(PLAIN)
    elif (key_file := folder / "clients" / f"{client}.key").exists() and is_world_readable(key_file):
        warn(f"others can read {key_file}: chmod 600 it")
    options = deployed.ClientOptions(
        address=address,
        client=client,
        certificates=folder,
        node=node,
        state_dir=expand_user(state_dir or Path("clients") / client).resolve(),
        once=once,
        give_up_after=float("inf") if give_up_after is None else give_up_after,
    )

    def write(line: str) -> None:
        logger.info("%s", line)
        if not quiet:
            write_line(line)

    deployed.join(options, write)


def _consent(allow: str, upload: str, rounds: int, epsilon: float) -> dict[str, str]:
    """Return the node settings of what a client's owner allows; ConfigError for what cannot be allowed."""
    from fedlab.errors import suggest
    from fedlab.runs.consent import ALLOW_KEY, ROUNDS_KEY, UPLOAD_KEY, UPLOADS
    from fedlab.runs.privacy_ledger import EPSILON_KEY

    if upload and upload not in UPLOADS:
        raise ConfigError(f"--allow-upload {upload!r}: {suggest(upload, UPLOADS)}")
    given = {ALLOW_KEY: allow, UPLOAD_KEY: upload, ROUNDS_KEY: str(rounds or ""), EPSILON_KEY: str(epsilon or "")}
    return {key: value for key, value in given.items() if value}


def certs(
    directory: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where they are made.")] = Path("certs"),
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or address by which clients reach the server; repeat it for more than one."),
    ] = None,
    client: Annotated[
        list[str] | None,
        typer.Option(help="A client that may join, by its domain's name; repeat it, or write commas as in targets."),
    ] = None,
    days: Annotated[float, typer.Option(min=0.001, help="Days for which the server's certificate is valid.")] = 365,
    force: Annotated[
        bool, typer.Option("--force", help="Make the server's certificate, and the keys of the clients named, anew.")
    ] = False,
    if_missing: Annotated[
        bool,
        typer.Option(
            "--if-missing", help="Keep the keys that exist, and a certificate that covers all hosts and is valid."
        ),
    ] = False,
    machines: Annotated[
        Path | None,
        typer.Option(help="Also copy to this folder what each machine needs: server, and clients/NAME for each key."),
    ] = None,
) -> None:
    """Create the credentials of a server and its clients: an authority, a certificate, a key for each client.

    Existing files stay: `fedlab certs --client mine` adds a client. On a client's machine only two files are needed,
    in the same folders: `certs/ca.crt` and `certs/clients/NAME.key`.

    Example: `fedlab certs --host lab.example.org --client usps --client optdigits`
    """
    from fedlab.comm.credentials import public_keys
    from fedlab.deploy import provision

    names = [name.strip().removeprefix("@") for text in client or () for name in text.split(",")]
    files = provision.create_credentials(
        directory, hosts=host or (), clients=names, days=days, force=force, if_missing=if_missing
    )
    if machines is not None:
        provision.export_per_machine(directory, machines)
    show_rows(
        f"credentials in {directory}",
        [
            (str(file.path.relative_to(expand_user(directory))), "new" if file.new else "", file.what, file.place)
            for file in files
        ],
        "file",
        "",
        "what",
        "goes",
    )
    if not public_keys(expand_user(directory)):
        stdout.print(f"no client may join yet: fedlab certs {directory} --client NAME", markup=False, highlight=False)


def ping(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where the server is.")],
    certs: Annotated[Path, typer.Option(help="Folder with ca.crt.")] = Path("certs"),
    insecure: Annotated[bool, typer.Option("--insecure", help="The server speaks plain text.")] = False,
) -> None:
    """Check that a server of `fedlab serve` answers and is trusted; exit with 1 and the reason when not.

    Example: `fedlab ping lab.example.org:9092`
    """
    from fedlab.deploy.probe import probe_server

    authority = None if insecure else expand_user(certs) / "ca.crt"
    if reason := probe_server(address, authority):
        raise RunError(f"no server at {address} ({reason})")
    proof = f"its certificate is signed by {authority}" if authority else "speaks plain text"
    stdout.print(f"the server at {address} is there; {proof}", markup=False, highlight=False, soft_wrap=True)


def client_status(
    state_dir: Annotated[
        Path, typer.Argument(metavar="STATE_DIR", help="State directory of `fedlab join`: clients/NAME.")
    ],
) -> None:
    """Check that a client of `fedlab join` is connected; exit with 1 and the reason when not.

    Example: `fedlab client-status clients/usps`
    """
    from fedlab.deploy.client import disconnect_reason

    if reason := disconnect_reason(expand_user(state_dir)):
        raise RunError(f"the client in {state_dir} is not connected: {reason}")
    stdout.print(f"the client in {state_dir} is connected", markup=False, highlight=False, soft_wrap=True)
