"""Model families: data, no arithmetic on weights."""
