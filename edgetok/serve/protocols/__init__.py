"""The protocols, one a file: bodies to requests, events to their own words."""
