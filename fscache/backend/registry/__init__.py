"""OCI registries: requests, tokens, manifests and layers."""
