"""Token ids → hidden states."""
