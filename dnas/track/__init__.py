"""Experiment trackers: copies of a study in TensorBoard, MLflow and W&B, while it runs or afterwards."""
