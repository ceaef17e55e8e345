"""The command line: the one room that knows the hospital, the coordinator and what they share."""
