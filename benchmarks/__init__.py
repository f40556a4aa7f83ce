"""How fast, always as a ratio against something named, measured alternately in one run: `make bench`."""
