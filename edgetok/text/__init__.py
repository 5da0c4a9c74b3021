"""Tokenizer, streaming detokenizer, chat template, sampling."""
