"""The scripts among the files, and which of them a command line runs.

What may be changed here: how a script is found, which is by what a Dockerfile copies, by its name,
by the end of its path, and by the directories that it has in common with what runs it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from gracefulworker.tools.manifests.dockerfile import Image
from gracefulworker.tools.manifests.launch import Surroundings
from gracefulworker.tools.manifests.sources import Source

#: Directories whose programs nobody writes for one service.
SYSTEM = tuple(
    f"{top}/{name}/" for top in ("", "/usr") for name in ("bin", "sbin", "lib", "libexec")
)


@dataclass
class Scripts:
    """All scripts, and those that something runs.

    :param supervised: the supervisors whose configuration is among the files, too.
    """

    supervised: frozenset[str] = frozenset()
    sources: list[Source] = field(default_factory=list)
    #: The origins of those that something runs.
    _used: set[tuple[str, int]] = field(default_factory=set)
    #: Those that were taken although others are as likely, by their origins.
    _ambiguous: dict[tuple[str, int], Source] = field(default_factory=dict)

    def add(self, sources: Iterable[Source]) -> None:
        """Take in some more."""
        self.sources += sources

    def unused(self) -> Iterator[Source]:
        """Yield those that nothing runs, as far as has been looked."""
        yield from (source for source in self.sources if source.origin not in self._used)

    def notes(self) -> Iterator[str]:
        """Yield a sentence for each that was taken among several."""
        for source in self._ambiguous.values():
            yield f"there are several scripts called {source.name}: {source.file} was taken"

    def around(
        self,
        file: str,
        environ: Mapping[str, str | None],
        sh: str = "dash",
        image: Image | None = None,
    ) -> Surroundings:
        """What a command line of `file` is read in, or that of an image that is known."""
        here = _Here(self, file if image is None else image.file, image)
        return Surroundings(here, environ, sh, supervised=self.supervised, used=self._used)

    def find(self, path: str, file: str) -> Source | None:
        """The script of that name whose path ends most like `path`; of several, the nearest."""
        same = [one for one in self.sources if one.name == os.path.basename(path)]
        if not same:
            return None

        def likeness(source: Source) -> tuple[int, int]:
            ends = zip(reversed(_parts(source.file)), reversed(_parts(path)), strict=False)
            alike = itertools.takewhile(lambda pair: pair[0] == pair[1], ends)
            common = os.path.commonpath([os.path.abspath(source.file), os.path.abspath(file)])
            # One in a ConfigMap has no path of its own.
            return 0 if source.title else sum(1 for _ in alike), len(common)

        found = max(same, key=likeness)
        if any(one.text != found.text for one in same if likeness(one) == likeness(found)):
            self._ambiguous[found.origin] = found
        return found


@dataclass(frozen=True)
class _Here:
    """The scripts as a command line of one file sees them: what its image copies comes first."""

    scripts: Scripts
    file: str
    image: Image | None

    def get(self, path: str) -> Source | None:
        copied = self.copied(path)
        if copied is None and path.startswith(SYSTEM):
            return None  # it comes with a package, or with the base image
        return self.scripts.find(copied or path, self.file)

    def copied(self, path: str) -> str | None:
        for source, target in self.image.copies if self.image is not None else ():
            if os.path.basename(target) == os.path.basename(path):
                return source
        return None


def _parts(path: str) -> list[str]:
    return os.path.normpath(path).split(os.sep)
