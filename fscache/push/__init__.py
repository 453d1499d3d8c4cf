"""Push: the user's own process; publishes images in folders, buckets and registries."""
