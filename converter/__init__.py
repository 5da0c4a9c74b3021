"""Checkpoint to calibrated, quantised, exported, verified artefact."""
