"""The same model in less time or memory."""
