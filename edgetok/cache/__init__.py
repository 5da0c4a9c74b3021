"""The KV cache on the host: tables of slots, pages, policies that evict, saved states."""
