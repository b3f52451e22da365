"""Everything that is known of a model family: its conversation, its photos, its backbone."""
