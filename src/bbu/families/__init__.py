"""Everything specific to a model family: chat format, photo preprocessing, backbone."""
