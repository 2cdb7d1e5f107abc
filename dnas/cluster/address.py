"""Addresses of PostgreSQL databases, which are displayed without passwords."""

import re
from urllib.parse import quote, unquote

from dnas.errors import InputError
from dnas.formatting import redact

CONNECTION = {  # detect a lost network within about 10 seconds instead of two hours
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
FORM = "postgresql://USER@HOST:PORT/DATABASE"


def parts_of(url: str) -> tuple[str, str | None, str]:
    """Return the scheme, the user with the password, and the rest of an address. Does not import psycopg."""
    match = re.fullmatch(r"(postgres(?:ql)?://)(?:(.*)@)?([^@]*)", url.strip(), re.DOTALL)
    if match is None:
        raise InputError(f"--storage needs {FORM}, but got something else (not shown: it may contain a password).")
    scheme, user_info, rest = match.groups()
    return scheme, user_info, rest


class Address:
    """Address of a database. `str` omits the password, and libpq receives it separately, so that no error quotes it.

    A password may contain any character, escaped (`%40`) or not. It ends at the last @ of the address.
    """

    def __init__(self, url: str) -> None:
        import psycopg
        from psycopg.conninfo import conninfo_to_dict

        scheme, user_info, rest = parts_of(url)
        user, colon, password = (user_info or "").partition(":")
        head, _, query = rest.partition("?")
        options = []
        secrets = {"password": _unescaped(password)} if colon else {}
        for pair in filter(None, query.split("&")):
            name, _, value = pair.partition("=")
            if "password" in name.lower():
                secrets[name.lower()] = _unescaped(value)
            else:
                options.append(pair)
        plain = f"{scheme}{f'{user}@' if user else ''}{head}{'?' if options else ''}{'&'.join(options)}"
        try:
            arguments = {key: str(value) for key, value in conninfo_to_dict(plain).items()}
            ports = arguments.get("port", "5432").split(",")
        except psycopg.ProgrammingError:
            ports = [""]
        if not all(port.isdigit() or not port for port in ports) or ports == [""]:
            raise InputError(
                f"--storage needs {FORM}, but the given text is not a valid address (not shown: it may contain a"
                " password)."
            )
        self.arguments = CONNECTION | arguments | secrets
        self.secrets = {
            form for secret in secrets.values() if secret for form in (secret, quote(secret), quote(secret, safe=""))
        }
        self._shown = f"{scheme}{user}{':***' if colon else ''}{'@' if user_info else ''}{head}"

    def __str__(self) -> str:
        return self._shown

    def clean(self, text: object) -> str:
        """Return `text` in one line and without the password."""
        line = redact("; ".join(part.strip() for part in str(text).splitlines() if part.strip()))
        for secret in sorted(self.secrets, key=len, reverse=True):
            line = line.replace(secret, "***") if len(secret) > 2 else line
        return line


def _unescaped(text: str) -> str:
    """Decode `text` unless it contains a % that does not begin an escape sequence."""
    return text if re.search(r"%(?![0-9A-Fa-f]{2})", text) else unquote(text)
