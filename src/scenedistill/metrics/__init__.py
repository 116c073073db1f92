"""What a network is worth: accuracy, calibration, cost, and where it looks."""
