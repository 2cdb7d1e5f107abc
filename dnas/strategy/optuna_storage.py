"""Optuna storages of the mirror: connections, integrity checks, and one-line error messages."""

import json
import re
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from dnas.errors import InputError
from dnas.formatting import first_line, redact

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

IDENTITY = "dnas:study"  # user attribute that distinguishes studies of the same name
# module of a database driver -> package to install
PACKAGES = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}


def local_storage(path: Path) -> "RDBStorage":
    """Open study.db; create it if it is missing."""
    from optuna.storages import RDBStorage

    def connect() -> sqlite3.Connection:
        # Connect by path: as part of a URL it would need quoting in three ways.
        connection = sqlite3.connect(path, timeout=10.0, check_same_thread=False)
        # A power failure may damage the file, which is then rebuilt. Waiting for the disk would slow down the search's
        # own writes.
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    # Checking the schema's version takes longer than everything else, and all supported versions share one schema.
    return RDBStorage("sqlite:///study.db", {"creator": connect}, skip_compatibility_check=True)


def check_url(url: str) -> None:
    """Raise `InputError` if a text has not the form of a storage's URL. Does not import Optuna."""
    if "://" not in url:
        raise _not_a_url(url)


def _not_a_url(url: str) -> InputError:
    return InputError(
        "--mirror must be the URL of a storage, such as sqlite:///<file> or"
        f" postgresql+psycopg://<user>@<host>/<database>, or none, but got {shown_url(url)!r}."
    )


def named_storage(url: str) -> "RDBStorage":
    """Open the storage at a URL; raise `InputError` if it cannot be used."""
    from optuna.exceptions import StorageInternalError
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    shown = shown_url(url)
    try:
        return RDBStorage(url)
    except NoSuchModuleError:
        raise InputError(
            f"--mirror {shown} names a kind of database that SQLAlchemy does not know; give sqlite:///<file>,"
            " postgresql+psycopg://<user>@<host>/<database> or mysql+pymysql://<user>@<host>/<database>."
        ) from None
    except (ArgumentError, KeyError, IndexError, ValueError):
        raise _not_a_url(url) from None
    except ImportError as error:
        module = next((e.name for e in (error, error.__cause__) if isinstance(e, ImportError) and e.name), None)
        package = PACKAGES.get(module or "", module) or "its driver's package"
        raise InputError(f"--mirror {shown} needs a package that is not installed: pip install '{package}'.") from None
    except RuntimeError as error:  # schema of another Optuna version
        raise InputError(f"--mirror {shown} cannot be used: {cause_of(error)}") from None
    except (SQLAlchemyError, StorageInternalError) as error:
        raise InputError(
            f"--mirror {shown} cannot be reached: {cause_of(error)}; start it, or give another, or none."
        ) from None


def is_sound(path: Path, name: str, identity: Mapping[str, Any]) -> bool:
    """Return True if study.db is an undamaged database that holds this study and no other.

    Raises:
        sqlite3.Error: It cannot be read now, because it is locked or access is denied; its state is unknown.
    """
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=10.0)
        try:
            sound = connection.execute("PRAGMA quick_check(1)").fetchall() == [("ok",)]
            names = connection.execute("SELECT study_name FROM studies").fetchall()
            identities = connection.execute("SELECT value_json FROM study_user_attributes WHERE key = ?", (IDENTITY,))
            return sound and names == [(name,)] and [json.loads(text) for (text,) in identities] == [identity]
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_CANTOPEN")):
            raise
        return False
    except ValueError:
        return False


def shown_url(url: str) -> str:
    """Return a URL without its password."""
    # `redact` expects a sentence, in which a URL ends at whitespace or a quotation mark.
    return redact(re.sub(r"[\s'\"]", lambda match: quote(match[0]), url))


def described(identity: Any) -> str:
    """Describe the study that an `IDENTITY` attribute belongs to."""
    if not isinstance(identity, dict):
        return "not created by dnas"
    return f"of the space {identity.get('space')}, seed {identity.get('seed')}, created {identity.get('created')}"


def cause_of(error: BaseException) -> str:
    """Return the first line of an error, or of the database driver's error that it wraps."""
    while (inner := getattr(error, "orig", None) or (error.__cause__ if not str(error).strip() else None)) is not None:
        error = inner
    cause = error.__cause__
    if type(error).__name__ == "StorageInternalError" and cause is not None:  # its text lacks the cause
        return cause_of(cause)
    return first_line(error)
