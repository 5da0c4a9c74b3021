"""An artefact's integers as a checkpoint for transformers and servers."""
