"""How the small models are trained and measured. Nothing here runs when a notebook does."""
