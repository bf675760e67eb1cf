"""Which domains of photographs a run has: folders below a data root, or those of PACS.

::

    ROOT/source/CLASS/**         the server's images, with their classes
    ROOT/targets/NAME/**         those of each simulated client
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from fedlab.data.digits.datasets import data_root
from fedlab.data.images import photo_domains, photo_folders
from fedlab.data.images.pacs import PACS
from fedlab.errors import ConfigError, suggest

SOURCE, TARGETS = "source", "targets"
AUTO, FOLDERS, SUITE = "auto", "folders", "pacs"


@dataclass(frozen=True)
class Layout:
    """The domains of a run; what is empty is still to be found.

    Attributes
    ----------
    kind
        "folders", "pacs", or "auto".
    source
        Domain of the server.
    targets, classes
        Names of the clients' domains, and of the classes by label.
    """

    kind: str
    source: str
    targets: tuple[str, ...]
    classes: tuple[str, ...]

    def resolved(self, root: Path | None) -> Layout:
        """Return the layout with everything that was empty.

        Raises
        ------
        ConfigError, DataError
            When a data root lacks the folders, or PACS the domains.
        """
        kind = self._kind(root) if self.kind == AUTO else self.kind
        found = self._folders(root) if kind == FOLDERS else self._suite()
        for target in found.targets:
            if not re.fullmatch(r"\w[\w.-]*", target):
                raise ConfigError(
                    f"target {target!r} is no client's name: letters, digits, '_', '-' and '.'; rename its folder"
                )
        return replace(found, kind=kind)

    def _kind(self, root: Path | None) -> str:
        """Return where domains come from; a root that was asked for must hold one of the two."""
        if root is None:
            return SUITE
        if (root / (self.source or SOURCE)).is_dir():
            return FOLDERS
        usual = data_root("")
        if (root / PACS.folder).is_dir() or (usual is not None and root.resolve() == usual.resolve()):
            return SUITE
        raise ConfigError(
            f"data.root={root} has no folder {self.source or SOURCE!r}; put the server's images into "
            f"{root / SOURCE}/CLASS/ and those of each client into {root / TARGETS}/NAME/"
        )

    def _suite(self) -> Layout:
        source = self.source or "photo"
        targets = self.targets or tuple(domain for domain in PACS.domains if domain != source)
        for domain in (source, *targets):
            if domain not in PACS.domains:
                raise ConfigError(f"PACS has no domain {domain!r}; {suggest(domain, PACS.domains)}")
        return Layout(SUITE, source, targets, PACS.classes)

    def _folders(self, root: Path | None) -> Layout:
        source, targets, classes = self.source or SOURCE, self.targets, self.classes
        if root is None:
            if targets and classes:  # a deployed client, which is told by the server
                return replace(self, source=source)
            raise ConfigError("image_folder.domains=folders reads data.root; name a folder with source/ and targets/")
        classes = classes or photo_domains.source_classes(root / source)
        if not targets and not (root / TARGETS).is_dir():
            raise ConfigError(
                f"{root} has no folder {TARGETS!r}; put each client's images into {root / TARGETS}/NAME/, or name the "
                "clients that join with their own, as image_folder.targets=alice,bob"
            )
        targets = targets or photo_folders.class_folders(root / TARGETS)
        if not targets:
            raise ConfigError(f"{root / TARGETS} has no sub-folder; put each client's images into one of its name")
        return Layout(FOLDERS, source, targets, classes)
