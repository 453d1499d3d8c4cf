"""Stores as the keeper sees them: how much is there, who waits, where bytes come from, what may be believed."""
