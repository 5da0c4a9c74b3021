"""The artefact: graph, data file, assets, and the folder they are built in."""
