"""A model behind a small web page and an HTTP endpoint, for one person or a few on a machine they trust."""
