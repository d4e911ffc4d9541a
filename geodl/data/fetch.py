"""Getting a data set onto the disk: an unpacked folder, an archive at hand, a download, or words.

``GEODL_ARCHIVES`` (``paths.archives``) is looked into before anything is downloaded. An archive is
checked against its checksum, unpacked beside its place and moved there.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from geodl.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Paths:
    """Where things live: ``data`` (unpacked sets), ``cache`` (geometry), ``archives`` (or none)."""

    data: Path
    cache: Path
    archives: Path | None = None


@dataclass(frozen=True)
class Archive:
    """A file that holds a data set.

    name: file name; sha256: its checksum; url: where it can be downloaded without a form, if
    anywhere; top: the folder inside it that becomes the data set's folder ("" = all of it).
    """

    name: str
    sha256: str
    top: str = ""
    url: str | None = None


def locate(
    folder: str, paths: Paths, archives: tuple[Archive, ...], contents: tuple[str, ...], words: str
) -> Path:
    """The folder of a data set, unpacked from an archive or downloaded if need be.

    Args:
        folder: its name below ``paths.data``.
        contents: entries that must be inside; others than these do not count as the data set.
        words: what to put where, for the error message.

    Raises:
        UserError: nothing at hand (with ``words``), a wrong checksum, a broken archive.
    """
    place = paths.data / folder
    if place.is_dir():
        lacking = [c for c in contents if not (place / c).exists()]
        if not lacking:
            return place
        raise UserError(
            f"{place} lacks {', '.join(lacking)}: {words} (expected inside: {', '.join(contents)})."
        )
    for archive in archives:
        at_hand = paths.archives / archive.name if paths.archives else None
        if at_hand is not None and at_hand.is_file():
            verify(at_hand, archive.sha256)
            unpack(at_hand, archive.top, place)
            return locate(folder, paths, (), contents, words)
    for archive in archives:
        if archive.url:
            import pooch

            log.info("downloading %s", archive.url)
            try:
                file = pooch.retrieve(
                    archive.url,
                    known_hash=f"sha256:{archive.sha256}",
                    path=paths.data / "downloads",
                    fname=archive.name,
                    progressbar=False,
                )
            except (OSError, ValueError) as error:
                raise UserError(
                    f"{archive.url} could not be downloaded ({error}): {words}."
                ) from error
            unpack(Path(file), archive.top, place)
            return locate(folder, paths, (), contents, words)
    names = " or ".join(a.name for a in archives)
    hint = f"put {names} into the folder that GEODL_ARCHIVES names, or " if names else ""
    raise UserError(f"data set {folder} is not in {place}: {hint}{words}.")


def verify(file: Path, sha256: str) -> None:
    """Raises UserError when the checksum differs."""
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise UserError(
            f"{file} has checksum {found[:12]}..., expected {sha256[:12]}...: it is truncated or "
            "another version; get it again."
        )


def unpack(file: Path, top: str, place: Path) -> None:
    """Unpack an archive so that its folder ``top`` becomes ``place``, whole or not at all.

    Raises:
        UserError: it is damaged, has no such folder, or takes more room than there is or than an
            archive of its size can need.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    log.info("unpacking %s to %s", file.name, place)
    scratch = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    whole = scratch / "all"  # with the permissions of any folder, which scratch does not have
    whole.mkdir()
    room = shutil.disk_usage(place.parent).free
    most = min(room, 1000 * file.stat().st_size + (1 << 20))

    def bounded(size: int) -> None:
        if size > most:
            raise UserError(
                f"{file} unpacks to more than {most >> 20} MB, which is "
                + ("all the room there is." if most == room else "a thousand times its size.")
            )

    total = 0

    def checked(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        nonlocal total
        total += member.size
        bounded(total)
        return tarfile.data_filter(member, path)

    try:
        if file.suffix == ".zip":
            with zipfile.ZipFile(file) as archive:
                bounded(sum(member.file_size for member in archive.infolist()))
                archive.extractall(whole)
        else:
            with tarfile.open(file) as archive:
                archive.extractall(whole, filter=checked)
        if not (whole / top).is_dir():
            raise UserError(f"{file} has no folder {top!r}: it is another archive.")
        try:
            (whole / top).rename(place)
        except OSError:
            if not place.is_dir():  # a parallel job was faster: its folder is as good
                raise
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise UserError(f"{file} cannot be unpacked ({error}): get it again.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
