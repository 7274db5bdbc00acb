"""`<file>.json`, the description that lies beside a packed byte file."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from rnn_lab.errors import DataError
from rnn_lab.system.atomic import write_text_atomic

FORMAT: Literal["rnn-lab-bytes"] = "rnn-lab-bytes"
VERSION: Literal[1] = 1
DELIMITER = 0x1E


class SourceInfo(BaseModel):
    """One source of a packed file: its name, kind, size in bytes (None if unknown) and documents taken."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: str
    bytes: int | None
    documents: int


class Sidecar(BaseModel):
    """What a packed byte file holds; `bytes` counts the delimiters between documents too.

    `validation` names a file in the same folder that holds documents kept out of training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["rnn-lab-bytes"] = FORMAT
    version: Literal[1] = VERSION
    documents: int
    bytes: int
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    delimiter: int = Field(default=DELIMITER, ge=0, le=255)
    created_by: str
    source: tuple[SourceInfo, ...] = ()
    skipped_empty: int = 0
    skipped_not_utf8: int = 0
    validation: str | None = None
    validation_documents: int = 0
    validation_bytes: int = 0
    validation_sha256: str = ""

    @field_validator("validation")
    @classmethod
    def _plain_name(cls, name: str | None) -> str | None:
        if name is not None and (name in {"", ".", ".."} or "/" in name or "\\" in name):
            raise ValueError("must be the plain name of a file in the same folder")
        return name


def sidecar_path(path: str | Path) -> Path:
    """`<path>.json`."""
    return Path(f"{path}.json")


def write_sidecar(path: str | Path, sidecar: Sidecar) -> None:
    """Write `sidecar` beside the data file `path`, atomically.

    Raises:
        OSError: the folder cannot be written.
    """
    write_text_atomic(sidecar_path(path), sidecar.model_dump_json(indent=2) + "\n")


def read_sidecar(path: str | Path) -> Sidecar | None:
    """Read the sidecar of the data file `path`; None where there is none or the `.json` is not one of ours.

    Raises:
        DataError: it is one of ours but cannot be read or has wrong fields.
    """
    where = sidecar_path(path)
    if not where.is_file():
        return None
    try:
        text = where.read_bytes()
    except OSError as error:
        raise DataError(f"{where}: cannot read the sidecar ({error.strerror}); fix its permissions") from error
    if FORMAT.encode() not in text:
        return None
    try:
        return Sidecar.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "file"
        raise DataError(
            f"{where}: not a sidecar that this version of rnn-lab reads ({place}: {first['msg']}); "
            "pack the data again, or remove the sidecar to use the file as raw bytes"
        ) from error
