"""The part of the checker that reads blobs: chunk info against the bootstrap, chunks against their digests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from .blob import BlobReader
from .chunk_table import difference
from .errors import BlobNotFoundError, CorruptError, FormatError, NydusErofsError, UnsupportedError
from .findings import Report
from .ids import BlobId
from .image import Bootstrap
from .rafs import DIGEST_SIZE, BlobFeatures, ChunkRow
from .record import Buffer
from .rules import Rule
from .source import Source
from .toc import BLOB_DATA, BLOB_DIGEST, BLOB_META, BLOB_META_HEADER, TocEntry, read_toc

FindBlob = Callable[[BlobId], Source | None]
Progress = Callable[[int, int], None]


class BlobCheck:
    """Checks the blobs of an image one after the other."""

    def __init__(self, bootstrap: Bootstrap, report: Report, progress: Progress | None) -> None:
        self._bootstrap = bootstrap
        self._report = report
        self._progress = progress
        self._done = 0
        self._total = 0
        # Row numbers by blob and chunk-info index: what the row itself says of the place is to be compared.
        self._rows = {row[1] << 24 | row[8]: number for number, row in enumerate(bootstrap.chunk_rows())}

    def run(self, find_blob: FindBlob) -> None:
        """Find and check every blob; findings go to the report."""
        wanted = []
        for index, blob in enumerate(self._bootstrap.blobs):
            try:
                source = find_blob(blob.id) if blob.sound else None
            except BlobNotFoundError as error:
                self._report.add(Rule.BLOB_MISSING, f"blob {index}", error.message)
                continue
            if source is not None:
                wanted.append((index, source))
                self._total += blob.entry.uncompressed_size
        for index, source in wanted:
            before = self._done
            self._blob(index, source)
            self._done = before + self._bootstrap.blobs[index].entry.uncompressed_size

    def _blob(self, index: int, source: Source) -> None:
        entry = self._bootstrap.blobs[index].entry
        try:
            reader = BlobReader(entry, source)
        except UnsupportedError as error:
            self._note(Rule.UNSUPPORTED, index, error)
            return
        except FormatError as error:
            self._note(error.rule, index, error)
            return
        self._report.blobs_read += 1
        try:
            reader.check_dense()
        except FormatError as error:
            self._note(error.rule, index, error)
        try:
            reader.find_units()
        except FormatError as error:
            self._note(error.rule, index, error)
            return
        for number, info in enumerate(reader.chunks.rows()):
            row = self._row(index, number)
            if row is None:
                continue  # a merged image may use only some of a blob's chunks
            where = f"blob {index} chunk {number}"
            if fault := difference(info, row):
                self._report.add(Rule.CHUNK_INFO, where, fault)
                continue
            try:
                reader.read(number, row.digest)
                self._report.verified += 1
            except CorruptError as error:
                self._report.add(Rule.CHUNK_DIGEST, where, error.message)
            if self._progress is not None:
                self._done += info.uncompressed_size
                self._progress(min(self._done, self._total), self._total)
        if entry.features & BlobFeatures.HAS_TOC:
            try:
                for toc_entry in read_toc(source, entry.toc_size, entry.toc_digest):
                    self._section(toc_entry, source, reader, index)
            except FormatError as error:
                self._note(error.rule, index, error)

    def _note(self, rule: Rule, index: int, error: NydusErofsError) -> None:
        where = f"blob {index}"
        self._report.add(rule, where, error.message.removeprefix(f"{where}: "))

    def _row(self, index: int, number: int) -> ChunkRow | None:
        place = self._rows.get(index << 24 | number)
        if place is None:
            return None
        start, _ = self._bootstrap.head.chunk_rows
        return ChunkRow.unpack(self._bootstrap.data, start + place * ChunkRow.size())

    def _section(self, entry: TocEntry, source: Source, reader: BlobReader, index: int) -> None:
        """One entry of the table of contents: the section is there and has its digest."""
        if entry.name == BLOB_DATA:
            return  # its chunks are checked one by one; old builders give it a wrong offset
        if entry.compressed_offset + entry.compressed_size > source.size():
            raise FormatError(f"{entry.name.decode('ascii', 'replace')} lies outside the blob", rule=Rule.TOC)
        data: Buffer
        if entry.name == BLOB_META:
            data = reader.chunk_info_bytes
        elif entry.name in (BLOB_META_HEADER, BLOB_DIGEST):
            data = source.read_at(entry.compressed_offset, entry.compressed_size)
        else:
            return
        if hashlib.sha256(data).digest() != entry.digest:
            raise FormatError(f"{entry.name.decode()} has a wrong digest", rule=Rule.TOC)
        if entry.name == BLOB_DIGEST:
            for number in range(min(len(data) // DIGEST_SIZE, reader.entry.chunk_count)):
                row = self._row(index, number)
                if row and row.digest != data[number * DIGEST_SIZE : (number + 1) * DIGEST_SIZE]:
                    raise FormatError(f"chunk {number} has another digest in the bootstrap", rule=Rule.TOC)
