"""Credentials for servers: how they are spelt, and where docker keeps them."""
