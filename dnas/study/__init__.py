"""A study on disk: its frozen inputs, its event log, and one folder per trial."""
