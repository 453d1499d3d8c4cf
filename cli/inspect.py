"""``nydus-erofs inspect``: what a bootstrap says, for people and for programs."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from enum import IntFlag
from typing import Any

import click

from ..erofs.errors import FormatError
from ..erofs.ids import printable
from ..erofs.image import Bootstrap
from ..erofs.inode import Inode
from ..erofs.rafs import BlobFeatures, Cipher, Compression, DigestAlgo, Flags
from .files import ImageFiles
from .output import pairs, table, text, to_json

_BLOB_COLUMNS = ("id", "chunk_count", "compressed_size", "uncompressed_size", "compression", "digest_algo")

SECTIONS = ("summary", "superblock", "blobs", "prefetch", "tree", "chunks")


@click.command()
@click.argument("bootstrap", type=click.Path())
@click.argument("section", type=click.Choice(SECTIONS), default="summary")
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; for tree and chunks one object a line.")
def command(bootstrap: str, section: str, paths: tuple[str, ...], as_json: bool) -> None:
    """Show a BOOTSTRAP.

    \b
    summary     superblock and blobs (the default)
    superblock  both superblocks
    blobs       the blob table
    prefetch    the files to be fetched first
    tree        every file, or those at and below each PATH
    chunks      the chunks of each PATH

    Names that are no UTF-8 are shown escaped; in JSON each odd byte 0xNN is the lone surrogate \\udcNN
    (Python's surrogateescape), so nothing is lost.
    """
    if paths and section not in ("tree", "chunks"):
        raise click.UsageError(f"{section} takes no PATH")
    if section == "chunks" and not paths:
        raise click.UsageError("chunks needs a PATH")
    with ImageFiles(bootstrap) as files:
        image = Bootstrap(files.bootstrap())
    if section == "tree":
        _tree(image, [os.fsencode(path) for path in paths or ("/",)], as_json)
    elif section == "chunks":
        for path in paths:
            _chunks(image, os.fsencode(path), as_json)
    elif section == "prefetch":
        _prefetch(image, as_json)
    elif as_json:
        whole = {"superblock": _superblock(image), "blobs": _blobs(image)}
        click.echo(to_json(whole if section == "summary" else whole[section]))
    else:
        if section in ("summary", "superblock"):
            pairs((name.replace("_", " "), _shown(value)) for name, value in _superblock(image).items())
        if section == "summary":
            click.echo()
        if section in ("summary", "blobs"):
            _show_blobs(image)


# --- superblock and blobs ---


def _superblock(image: Bootstrap) -> dict[str, Any]:
    sb, ext = image.head.superblock, image.head.ext
    return {
        "bytes": len(image.data),
        "inodes": sb.inodes,
        "root_nid": sb.root_nid,
        "blocks": sb.blocks,
        "meta_block": sb.meta_block,
        "devices": sb.extra_devices,
        "chunk_size": ext.chunk_size,
        "flags": _names(Flags(ext.flags)),
        "blob_table_offset": ext.blob_table_offset,
        "blob_table_size": ext.blob_table_size,
        "prefetch_table_offset": ext.prefetch_table_offset,
        "prefetch_table_size": ext.prefetch_table_size,
        "chunk_table_offset": ext.chunk_table_offset,
        "chunk_table_size": ext.chunk_table_size,
    }


def _blobs(image: Bootstrap) -> list[dict[str, Any]]:
    out = []
    for blob, device in zip(image.blobs, image.head.devices, strict=True):
        fields = asdict(blob.entry)
        for name in ("raw_id", "blob_index", "cipher_iv"):
            del fields[name]
        if blob.entry.features & BlobFeatures.ENCRYPTED:
            # Here this field is the key of the blob's cipher: not for terminals and logs.
            fields["meta_digest"], fields["meta_size"] = b"", 0
        fields |= {
            "compression": _word(Compression, blob.entry.compression),
            "ci_compression": _word(Compression, blob.entry.ci_compression),
            "digest_algo": _word(DigestAlgo, blob.entry.digest_algo),
            "cipher": _word(Cipher, blob.entry.cipher),
            "features": _names(BlobFeatures(blob.entry.features)),
            "toc_digest": blob.entry.toc_digest.hex(),
            "meta_digest": fields["meta_digest"].hex(),
            "mapped_block": device.mapped_block,
        }
        out.append({"id": blob.id} | fields)
    return out


def _show_blobs(image: Bootstrap) -> None:
    header = ("blob", "id", "chunks", "compressed", "uncompressed", "compression", "digest", "features")
    rows = [
        (number, *(blob[name] for name in _BLOB_COLUMNS), _shown(blob["features"]))
        for number, blob in enumerate(_blobs(image))
    ]
    if rows:
        table(header, rows)
    else:
        click.echo("no blobs")


def _names(flags: IntFlag) -> list[str]:
    """Lower-case names of the bits that are set; unknown ones as numbers."""
    names = [(flag.name or "").lower() for flag in type(flags) if flags & flag]
    rest = flags & ~sum(type(flags))
    return names + [hex(rest)] * bool(rest)


def _word(kind: type[Compression | DigestAlgo | Cipher], value: int) -> str:
    try:
        return kind(value).name.lower()
    except ValueError:
        return str(value)


def _shown(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


# --- tree ---


def _prefetch(image: Bootstrap, as_json: bool) -> None:
    nids = list(image.prefetch_nids())
    wanted = set(nids)
    paths: dict[int, bytes] = {}
    for path, inode in image.walk() if nids else ():
        if inode.nid in wanted:
            paths.setdefault(inode.nid, path)
    if as_json:
        click.echo(to_json([{"nid": nid, "path": text(paths.get(nid, b""))} for nid in nids]))
    elif nids:
        table(("nid", "path"), [(nid, printable(paths.get(nid, b"not in the tree"))) for nid in nids])
    else:
        click.echo("no prefetch table")


def _tree(image: Bootstrap, paths: list[bytes], as_json: bool) -> None:
    wanted = []
    for path in paths:
        image.lookup(path)  # says so when there is none
        wanted.append(b"/" + b"/".join(filter(None, path.split(b"/"))))
    for path, inode in image.walk():
        if not any(path == top or path.startswith(top.rstrip(b"/") + b"/") for top in wanted):
            continue
        click.echo(to_json(_file(image, path, inode)) if as_json else _line(image, path, inode))


def _file(image: Bootstrap, path: bytes, inode: Inode) -> dict[str, Any]:
    out: dict[str, Any] = {
        "path": text(path),
        "nid": inode.nid,
        "mode": oct(inode.mode),
        "nlink": inode.nlink,
        "uid": inode.uid,
        "gid": inode.gid,
        "size": inode.size,
        "mtime": inode.mtime,
        "mtime_nsec": inode.mtime_nsec,
        "layout": inode.layout.name.lower(),
    }
    if inode.is_symlink:
        out["target"] = text(image.readlink(inode.nid))
    if stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode):
        out["rdev"] = _device(inode)
    if xattrs := image.xattrs(inode.nid):
        out["xattrs"] = {text(name): value.hex() for name, value in xattrs.items()}
    return out


def _line(image: Bootstrap, path: bytes, inode: Inode) -> str:
    size: int | str = inode.size
    if stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode):
        size = _device(inode)
    target = f" -> {printable(image.readlink(inode.nid))}" if inode.is_symlink else ""
    owner = f"{inode.uid}:{inode.gid}"
    return (
        f"{inode.nid:>8} {stat.filemode(inode.mode)} {inode.nlink:>3} {owner:>9} {size:>12}"
        f" {_time(inode.mtime)} {printable(path)}{target}"
    )


def _time(seconds: int) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        return str(seconds)


def _device(inode: Inode) -> str:
    """``major:minor`` of the kernel's 32-bit encoding."""
    rdev = inode.rdev
    return f"{rdev >> 8 & 0xFFF}:{rdev & 0xFF | rdev >> 12 & 0xFFF00}"


# --- chunks ---


def _chunks(image: Bootstrap, path: bytes, as_json: bool) -> None:
    inode = image.lookup(path)
    if not inode.is_regular:
        raise FormatError(f"not a regular file, so it has no chunks: {printable(path)}")
    chunks = _chunk_dicts(image, inode)
    if as_json:
        click.echo(to_json({"path": text(path), "nid": inode.nid, "size": inode.size, "chunks": list(chunks)}))
        return
    click.echo(
        f"{printable(path)}: nid {inode.nid}, {inode.size} bytes, the kernel's chunks are 2^{inode.chunk_bits} bytes"
    )
    names = (
        "offset",
        "size",
        "blob",
        "index",
        "uncompressed_offset",
        "compressed_offset",
        "compressed_size",
        "digest",
    )
    rows = [tuple(chunk[name] for name in names) for chunk in chunks]
    if rows:
        table([name.replace("_", " ") for name in names], rows)


def _chunk_dicts(image: Bootstrap, inode: Inode) -> Iterator[dict[str, Any]]:
    for number, chunk in enumerate(image.chunk_indexes(inode)):
        image.check_chunk(chunk)
        row = image.chunk_row(chunk)
        start = number * image.chunk_size
        yield {
            "offset": start,
            "size": min(image.chunk_size, inode.size - start),
            "blob": chunk.blob_index,
            "index": chunk.ci_index,
            "uncompressed_offset": chunk.start_block << 12,
            "compressed_offset": row.compressed_offset if row else None,
            "compressed_size": row.compressed_size if row else None,
            "digest": row.digest.hex() if row else None,
        }
