"""Studies shared by several hosts through a PostgreSQL database: `dnas worker` and `dnas pull`."""
