"""Evaluation of networks: accuracy, calibration, cost, differences and class-activation maps."""
