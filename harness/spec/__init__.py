"""A file becomes an exact list of trials: what it may say, its layers of settings, ranges and ids."""
