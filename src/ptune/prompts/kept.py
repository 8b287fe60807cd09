"""Texts that readers have read: kept in memory up to a limit, and in a folder for later runs."""

from __future__ import annotations

import hashlib
import sqlite3
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ptune.errors import PtuneError


class StatesShape(NamedTuple):
    """The shape of what is kept of texts.

    Attributes:
        heads: Heads and width of a head, for the keys and then the values of every attention.
        means: Numbers of a text's means.
    """

    heads: list[tuple[int, int]]
    means: int

    @property
    def width(self) -> int:
        """Numbers of the keys and values of a token."""
        return sum(heads * dim for heads, dim in self.heads)


class KeptTexts:
    """What readers have read of texts (`TextStates`), up to a number of bytes.

    A text is known by its token ids, so it does not matter which tokenizer made them or how they
    were cut. Everything is forgotten when the backbone's weights, number format, device or
    attention change. Beyond the limit, texts are read again each time, or found in a folder.

    Args:
        shared: Whether several backbones with the same weights may use them, one after another.

    Attributes:
        limit: Bytes to keep in memory at most; 0: nothing is kept there.
        nbytes: Bytes that are kept in memory.
        read: Texts that were read by the backbone.
        reused: Texts that were not.
        from_folder: Texts among these that came from the folder.
        shape: The shape of what is kept; ``None``: no text was read yet.
    """

    def __init__(self, *, shared: bool = False) -> None:
        self.shared = shared
        self.limit = self.nbytes = self.read = self.reused = self.from_folder = 0
        self.shape: StatesShape | None = None
        self._rows: dict[bytes, Tensor] = {}
        self._like = torch.empty(0)  # has the format and the device of rows
        self._version: object = None
        self._name: str | None = None
        self._folder: tuple[Path, int] | None = None
        self._file: TextFile | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def is_on(self) -> bool:
        """Whether anything may be kept."""
        return bool(self.limit or self._folder)

    def use_folder(self, folder: str | Path, limit: int) -> None:
        """Look texts up in a folder, and keep new ones there.

        Args:
            folder: Holds a file for each backbone and number format.
            limit: Bytes that a file may have.
        """
        if not self.shared or self._folder != (Path(folder), limit):
            self.forget()
        self._folder, self._version = (Path(folder), limit), None

    def forget(self) -> None:
        """Free the memory."""
        self._rows.clear()
        self.nbytes, self.shape = 0, None
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        """Free the memory, and keep nothing from now on."""
        self.limit, self._folder = 0, None
        self.forget()

    def check(self, version: object, fingerprint: Callable[[], str | None]) -> None:
        """Forget everything if it belongs to another state of the backbone.

        Args:
            version: Changes with the backbone, and with its state.
            fingerprint: Returns what decides about the state of any backbone; ``None``: it is
                unknown.

        Raises:
            PtuneError: The folder cannot be written to.
        """
        if version == self._version:
            return
        name = fingerprint() if self.shared or self._folder is not None else None
        if name is None or name != self._name:
            self.forget()
        self._version, self._name = version, name
        if self._folder is not None and self._file is None and name is not None:
            self._file = TextFile(self._folder[0] / f"{name}.texts", self._folder[1])

    def get(self, key: bytes) -> Tensor | None:
        """The row of a text, see `TextStates.rows`."""
        row = self._rows.get(key)
        # Before the first text is read, the format of a row is unknown.
        if row is None and self._file is not None and self.shape is not None:
            row = self._file.get(key, self._like.dtype)
            if row is not None:
                self.from_folder += 1
                row = row.to(self._like.device)
                self._remember(key, row)
        return row

    def add(self, rows: Mapping[bytes, Tensor]) -> None:
        """Keep the rows of some texts as far as they fit."""
        for key, row in rows.items():
            self._like = row.new_empty(0)
            self._remember(key, row)
        if self._file is not None:
            self._file.add(rows)

    def _remember(self, key: bytes, row: Tensor) -> None:
        if key not in self._rows and self.nbytes + row.nbytes <= self.limit:
            self._rows[key] = row
            self.nbytes += row.nbytes

    @property
    def summary(self) -> dict[str, int]:
        """Numbers for `metrics.json`."""
        return {
            "texts": len(self),
            "bytes": self.nbytes,
            "bytes_per_text": self.nbytes // max(1, len(self)),
            "read": self.read,
            "reused": self.reused,
            "from_folder": self.from_folder,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return KeptTexts, ()


class TextFile:
    """Rows of texts on disk, in an SQLite database, which several processes may use at once.

    A damaged file is replaced, and a damaged row counts as missing. The file may be deleted at any
    time. Nothing that goes wrong later does harm: texts are then read again.

    Args:
        file: The file. Its name says which backbone the rows belong to.
        limit: Bytes that it may have.

    Raises:
        PtuneError: It cannot be written.
    """

    def __init__(self, file: Path, limit: int) -> None:
        self.file = file
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._database = self._opened(limit)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:  # it is not a database
                file.unlink()
                self._database = self._opened(limit)
        except (OSError, sqlite3.Error) as error:
            raise PtuneError(
                f"Cannot keep texts in {file.parent}: {error}. Name a folder that you may write "
                "to, or leave out --keep-texts-in."
            ) from error

    def _opened(self, limit: int) -> sqlite3.Connection:
        database = sqlite3.connect(self.file, isolation_level=None, check_same_thread=False)
        try:
            # The map is a view of the file, so it costs no memory that others need.
            database.execute(f"PRAGMA mmap_size = {limit}")
            database.execute("PRAGMA synchronous = OFF")
            # A new file is written by one process only.
            database.execute("BEGIN IMMEDIATE")
            database.execute(
                "CREATE TABLE IF NOT EXISTS texts "
                "(key BLOB PRIMARY KEY, checksum INTEGER, row BLOB)"
            )
            database.execute("COMMIT")
            (page,) = database.execute("PRAGMA page_size").fetchone()
            database.execute(f"PRAGMA max_page_count = {max(1, limit // page)}")
        except sqlite3.Error:
            database.close()
            raise
        return database

    def get(self, key: bytes, dtype: torch.dtype) -> Tensor | None:
        """The numbers of a row; ``None``: there is no such row, or it is damaged."""
        ask = "SELECT checksum, row FROM texts WHERE key = ?"
        try:
            found = self._database.execute(ask, (_short(key),)).fetchone()
        except sqlite3.Error as error:
            self._failed(error)
            found = None
        if found is None or not found[1] or zlib.crc32(found[1]) != found[0]:
            return None
        return torch.frombuffer(bytearray(found[1]), dtype=dtype)

    def add(self, rows: Mapping[bytes, Tensor]) -> None:
        """Write rows as far as they fit into the file."""
        write = "INSERT OR REPLACE INTO texts VALUES (?, ?, ?)"
        for key, row in rows.items():
            content = row.cpu().contiguous().view(torch.uint8).numpy().tobytes()
            try:
                self._database.execute(write, (_short(key), zlib.crc32(content), content))
            except sqlite3.Error as error:
                self._failed(error)
                break

    def _failed(self, error: sqlite3.Error) -> None:
        """Have a damaged file replaced by the next run. One that is full or locked stays."""
        if not isinstance(error, sqlite3.OperationalError):
            self.file.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def _short(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def text_keys(
    input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None
) -> list[bytes]:
    """For each text, what decides about its keys and values: its tokens and their types."""
    columns = [input_ids] if token_type_ids is None else [input_ids, token_type_ids]
    numbers = torch.stack([c.long() for c in columns], dim=1).cpu().numpy()  # [batch, 1 or 2, seq]
    masks = (attention_mask != 0).cpu().numpy()
    kind = bytes([len(columns)])
    return [kind + row[:, mask].tobytes() for row, mask in zip(numbers, masks, strict=True)]
