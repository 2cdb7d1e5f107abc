"""Addresses of PostgreSQL databases, without passwords where they are shown."""

import re
from urllib.parse import quote, unquote

import psycopg
from psycopg.conninfo import conninfo_to_dict

from dnas.errors import InputError
from dnas.formatting import redact

CONNECTION = {  # a network that is gone is noticed in about ten seconds, not in two hours
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
FORM = "postgresql://USER@HOST:PORT/DATABASE"


# --- the address --------------------------------------------------------------------------------------------------


class Address:
    """Where a database is. libpq never sees the password in it, so it can't quote it; `str` has none.

    A password may hold any character, escaped (`%40`) or as it is: up to the last @ all of it is the password.
    """

    def __init__(self, url: str) -> None:
        match = re.fullmatch(r"(postgres(?:ql)?://)(?:(.*)@)?([^@]*)", url.strip(), re.DOTALL)
        if match is None:
            raise InputError(f"a storage is {FORM}, but got something else (not shown: it may hold a password).")
        scheme, user_info, rest = match.groups()
        user, colon, word = (user_info or "").partition(":")
        head, _, query = rest.partition("?")
        kept = []
        secrets = {"password": _unescaped(word)} if colon else {}
        for pair in filter(None, query.split("&")):
            name, _, value = pair.partition("=")
            if "password" in name.lower():
                secrets[name.lower()] = _unescaped(value)
            else:
                kept.append(pair)
        plain = f"{scheme}{f'{user}@' if user else ''}{head}{'?' if kept else ''}{'&'.join(kept)}"
        try:
            facts = {key: str(value) for key, value in conninfo_to_dict(plain).items()}
            ports = facts.get("port", "5432").split(",")
        except psycopg.ProgrammingError:
            ports = [""]
        if not all(port.isdigit() or not port for port in ports) or ports == [""]:
            raise InputError(f"a storage is {FORM}, but what was given can't be read as that (it may hold a password).")
        self.arguments = CONNECTION | facts | secrets
        self.secrets = {form for word in secrets.values() if word for form in (word, quote(word), quote(word, safe=""))}
        self._shown = f"{scheme}{user}{':***' if colon else ''}{'@' if user_info else ''}{head}"

    def __str__(self) -> str:
        return self._shown

    def clean(self, text: object) -> str:
        """`text`, in one line, without the password."""
        found = redact("; ".join(line.strip() for line in str(text).splitlines() if line.strip()))
        for secret in sorted(self.secrets, key=len, reverse=True):
            found = found.replace(secret, "***") if len(secret) > 2 else found
        return found


def _unescaped(word: str) -> str:
    return word if re.search(r"%(?![0-9A-Fa-f]{2})", word) else unquote(word)
