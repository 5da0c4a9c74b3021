"""From a prompt to an answer: sequences and the loop that steps them."""
