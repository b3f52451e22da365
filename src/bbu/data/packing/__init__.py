"""Which samples share a pack, and how long each will be."""
