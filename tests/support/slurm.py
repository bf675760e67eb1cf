"""A stand-in for Slurm: its commands as scripts, which run a job at once as a process of this machine.

As Slurm's, ``sbatch`` runs its own copy of the script: whoever submits may move or change the file afterwards.
"""

from __future__ import annotations

import os
from pathlib import Path

SCRIPTS = {
    "sbatch": """
[ -f refused ] && { cat refused >&2; exit 1; }
id=$((100 + $(ls jobs | wc -l)))
cp "$1" "scripts/$id"
env > "scripts/$id.env"
SLURM_JOB_ID=$id SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0 \
    setsid sh "scripts/$id" > "scripts/$id.log" 2>&1 &
echo $! > "jobs/$id"
echo "Submitted batch job $id"
""",
    "srun": """
while [ "${1#--}" != "$1" ]; do
    case "$1" in --output) out="$2"; shift;; --error) error="$2"; shift;; esac
    shift
done
name() { echo "$1" | sed "s/%j/$SLURM_JOB_ID/; s/%t/0/"; }
exec "$@" > "$(name "$out")" 2> "$(name "$error")"
""",
    "squeue": 'for job in jobs/*; do kill -0 "$(cat "$job")" 2>/dev/null && basename "$job"; done; true',
    "scancel": 'for id in "$@"; do kill -- "-$(cat "jobs/$id")" 2>/dev/null; done; true',
    "sacct": "echo OUT_OF_MEMORY",
}


class StandInSlurm:
    """The commands of Slurm in ``bin`` of a folder.

    Attributes
    ----------
    path
        Search path that begins with them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("bin", "jobs", "scripts"):
            (folder / name).mkdir(parents=True)
        for name, script in SCRIPTS.items():
            file = folder / "bin" / name
            file.write_text(f'#!/bin/sh\ncd "{folder}" || exit 1\n{script.strip()}\n')
            file.chmod(0o755)
        self.path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"

    def refuse(self, reason: str) -> None:
        """Let sbatch refuse every job from now on."""
        (self.folder / "refused").write_text(reason)

    def scripts(self) -> list[str]:
        """Return the batch scripts of all jobs."""
        return [file.read_text() for file in sorted((self.folder / "scripts").glob("[0-9][0-9][0-9]"))]

    def logs(self) -> str:
        """Return what the shells of all jobs said."""
        return "".join(file.read_text() for file in sorted((self.folder / "scripts").glob("*.log")))

    def environments(self) -> list[set[str]]:
        """Return ``NAME=value`` of the environments that sbatch hands on to jobs, as it does unless told otherwise."""
        return [set(file.read_text().splitlines()) for file in sorted((self.folder / "scripts").glob("*.env"))]

    def hold(self, job: str, pid: int) -> None:
        """Queue a job that is this process."""
        (self.folder / "jobs" / job).write_text(str(pid))
