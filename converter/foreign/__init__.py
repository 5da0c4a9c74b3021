"""Models of families that edgetok does not know, through optimum's exporter."""
