"""Formats of reasoning and tool calls by family; nothing of any protocol."""
