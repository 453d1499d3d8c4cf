"""From the name of an image to what can be mounted: where it is, its bootstrap, what ``prepare`` makes of it."""
