"""What decides results: build, train, evaluate, analyse, record."""
