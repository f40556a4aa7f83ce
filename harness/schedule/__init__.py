"""Trials find a process: on Ray or on this machine, in which order, and what is told meanwhile."""
