"""The scripts among the files, and which of them a command line runs.

What may be changed here: how a script is found, which is by its name, by what a Dockerfile copies,
and by the directories that it has in common with what runs it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gracefulworker.tools.manifests.dockerfile import Image
from gracefulworker.tools.manifests.launch import Surroundings
from gracefulworker.tools.manifests.sources import Source


@dataclass
class Scripts:
    """All scripts, and those that something runs.

    :param is_supervised: whether supervisord's configuration is among the files, too.
    """

    is_supervised: bool = False
    sources: list[Source] = field(default_factory=list)
    #: The origins of those that something runs.
    _used: set[tuple[str, int]] = field(default_factory=set)
    #: Those that were taken although others have their name, by their origins.
    _ambiguous: dict[tuple[str, int], Source] = field(default_factory=dict)

    def add(self, sources: Iterable[Source]) -> None:
        """Take in some more."""
        self.sources += sources

    def unused(self) -> Iterator[Source]:
        """Yield those that nothing runs, as far as has been looked."""
        yield from (source for source in self.sources if source.origin not in self._used)

    def notes(self) -> Iterator[str]:
        """Yield a sentence for each that is used, and was taken among several."""
        for origin, source in self._ambiguous.items():
            if origin in self._used:
                yield f"there are several scripts called {source.name}: {source.file} was taken"

    def around(
        self,
        file: str,
        environ: Mapping[str, str | None],
        sh: str = "dash",
        image: Image | None = None,
    ) -> Surroundings:
        """What a command line of `file` is read in: the scripts by the names that they have there.

        What a Dockerfile copies comes first; of several scripts of one name, the nearest is taken.
        """
        named: dict[str, list[Source]] = {}
        for source in self.sources:
            named.setdefault(source.name, []).append(source)
        found = {name: self._nearest(same, file) for name, same in named.items()}
        for path, target in image.copies if image is not None else ():
            end = os.path.normpath(path)
            same = [s for s in self.sources if f"/{os.path.normpath(s.file)}".endswith(f"/{end}")]
            if same:
                found[os.path.basename(target)] = self._nearest(same, file)
        return Surroundings(found, environ, sh, is_supervised=self.is_supervised, used=self._used)

    def _nearest(self, sources: Sequence[Source], file: str) -> Source:
        """The one that has most directories in common with a file."""

        def common(source: Source) -> int:
            return len(os.path.commonpath([os.path.abspath(source.file), os.path.abspath(file)]))

        found = max(sources, key=common)
        if any(one.text != found.text for one in sources if common(one) == common(found)):
            self._ambiguous[found.origin] = found
        return found
