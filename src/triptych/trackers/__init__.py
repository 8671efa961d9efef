"""Trackers: TensorBoard, Trackio, Weights & Biases and MLflow, fed from the curves that a run writes."""
