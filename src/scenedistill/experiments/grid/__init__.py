"""Grids of experiments: data sets x ratios x students x methods x seeds, on this machine or a cluster."""
