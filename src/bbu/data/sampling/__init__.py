"""Which photos come when, and what is shown with them."""
