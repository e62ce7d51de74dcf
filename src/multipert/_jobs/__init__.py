"""The jobs behind the command line: read, hold out, train, predict, score, report."""
