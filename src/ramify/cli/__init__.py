"""The command line: one short file per command, loaded when it is called."""
