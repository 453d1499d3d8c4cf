"""HTTP for all backends: requests, bodies, errors, connections, and which server to ask."""
