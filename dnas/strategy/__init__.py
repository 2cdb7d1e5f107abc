"""The search: proposals, early stopping, the driver, and everything that follows from the event log."""
