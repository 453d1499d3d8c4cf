"""Prepare: no privilege, once for each image; parses a bootstrap that nobody vouches for."""
