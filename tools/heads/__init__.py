"""The trained example of each head: its data, built from what Python itself carries, and its training."""
