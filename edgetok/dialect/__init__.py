"""How families of models write reasoning and tool calls; nothing of any protocol."""
