"""The command line, `starflow COMMAND`."""
