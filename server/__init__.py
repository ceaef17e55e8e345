"""The coordinator: it sees only what a hospital released."""
