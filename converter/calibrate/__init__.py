"""Calibration text and the original model, one decoder block at a time."""
