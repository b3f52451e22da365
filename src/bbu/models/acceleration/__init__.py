"""Optional ways to train the same model in less time or memory."""
