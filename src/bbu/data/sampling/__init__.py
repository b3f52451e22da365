"""Order of the training photos, and the teachers and context shown with them."""
