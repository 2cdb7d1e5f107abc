"""The Python interface: searches, ablations and single trainings, and what can be asked of a study."""
