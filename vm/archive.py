"""Debian's package archive: find, download and unpack packages without installing any.

The kernels come from suites the machine does not use itself, so apt is run on a configuration of
our own: its own list of sources (the mirrors the machine already uses, other suites) and its own
folders. The machine's apt state is never touched.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cmp_to_key
from pathlib import Path
from subprocess import run

from .process import VmError, output

_KEYRINGS = ("debian-archive-keyring.pgp", "debian-archive-keyring.gpg")
_SUITE = re.compile(r"(?P<codename>[a-z]+)(-updates|-backports|-security)?")


@dataclass(frozen=True, slots=True)
class Package:
    """One version of one binary package; ``str()`` is what apt takes on its command line."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}={self.version}"


class Archive:
    """One apt configuration. ``options`` empty means the machine's own."""

    def __init__(self, options: Iterable[str] = ()) -> None:
        self._options = [word for option in options for word in ("-o", option)]

    @classmethod
    def of_suites(cls, directory: Path, suites: Iterable[str]) -> Archive:
        """A private configuration kept in ``directory``, with fresh package lists of ``suites``."""
        for folder in ("lists/partial", "cache/archives/partial", "parts"):
            (directory / folder).mkdir(parents=True, exist_ok=True)
        (directory / "status").touch()  # no installed packages: the machine's must not take part
        (directory / "sources.list").write_text(_sources(suites))
        archive = cls(
            (
                f"Dir::Etc::sourcelist={directory}/sources.list",
                f"Dir::Etc::sourceparts={directory}/parts",
                f"Dir::Etc::preferencesparts={directory}/parts",
                f"Dir::State::lists={directory}/lists",
                f"Dir::State::status={directory}/status",
                f"Dir::Cache={directory}/cache",
                "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
                "APT::Update::Error-Mode=any",  # or else a mirror that is away is only a warning
            )
        )
        archive._apt("apt-get", "update")
        return archive

    def versions(self, *names: str) -> list[Package]:
        """Every version the archive holds of the packages named; unknown names give none."""
        found: dict[Package, None] = {}
        if names:
            for line in self._apt("apt-cache", "madison", *names).splitlines():
                name, version, _ = (field.strip() for field in line.split("|", 2))
                found[Package(name, version)] = None
        return list(found)

    def names(self, prefix: str) -> list[str]:
        """Names the archive knows that start with ``prefix``."""
        return self._apt("apt-cache", "pkgnames", prefix).split()

    def depends(self, package: Package) -> list[str]:
        """Names of the packages ``package`` depends on; of alternatives, all."""
        text = self._apt("apt-cache", "show", str(package))
        fields = [line.split(":", 1)[1] for line in text.splitlines() if line.startswith("Depends:")]
        return [re.split(r"[\s(:]", word.strip())[0] for word in re.split(r"[,|]", ",".join(fields))]

    def download(self, packages: Iterable[Package], into: Path) -> list[Path]:
        """Fetch the packages into the empty folder ``into``; returns the files in it."""
        into.mkdir(parents=True, exist_ok=True)
        self._apt("apt-get", "download", *map(str, packages), cwd=into)
        return sorted(into.glob("*.deb"))

    def _apt(self, tool: str, *arguments: str, cwd: Path | None = None) -> str:
        env = {**os.environ, "LC_ALL": "C"}
        # Downloads go to folders only root may enter, where apt's own user could not write.
        options = [*self._options, "-o", "APT::Sandbox::User=root"]
        return output([tool, "-q", *options, *arguments], cwd=cwd, env=env)


def newest(packages: Iterable[Package]) -> Package | None:
    """The package with the highest version, by Debian's rules; None if there is none."""

    def compare(one: Package, other: Package) -> int:
        if one.version == other.version:
            return 0
        less = run(["dpkg", "--compare-versions", one.version, "lt", other.version], check=False)
        return 1 if less.returncode else -1

    return max(packages, key=cmp_to_key(compare), default=None)


def _sources(suites: Iterable[str]) -> str:
    keyring = next((f"/usr/share/keyrings/{k}" for k in _KEYRINGS if Path(f"/usr/share/keyrings/{k}").exists()), "")
    signed = f"[signed-by={keyring}] " if keyring else ""
    mirrors = _mirrors()
    return "".join(
        f"deb {signed}{mirrors['security' if suite.endswith('-security') else 'main']} {suite} main\n"
        for suite in suites
    )


def _mirrors() -> Mapping[str, str]:
    """The machine's own mirrors of Debian: ``main`` and ``security``.

    NYDUS_EROFS_DEBIAN_MIRROR names one for machines that are not Debian; the security archive is
    then looked for beside it.
    """
    found: dict[str, str] = {}
    if mirror := os.environ.get("NYDUS_EROFS_DEBIAN_MIRROR"):
        found["main"] = mirror
    else:
        columns = "$(COMPONENT)|$(ORIGIN)|$(RELEASE)|$(REPO_URI)"
        for line in output(["apt-get", "indextargets", "--format", columns]).splitlines():
            component, origin, release, uri = line.split("|")
            # Before the first update apt does not know the origin; then the path has to do.
            ours = origin == "Debian" or (origin.startswith("$") and "/debian" in uri)
            if component == "main" and ours and _SUITE.fullmatch(release):
                found.setdefault("security" if release.endswith("-security") else "main", uri)
    if "main" not in found:
        raise VmError(
            "no mirror of Debian in this machine's apt configuration",
            hint="set NYDUS_EROFS_DEBIAN_MIRROR to the URL of one",
        )
    found.setdefault("security", found["main"].rstrip("/") + "-security")
    return found
