"""Aims other than giving the input back: a file each, whose class `Task` extends training/lab/trial.py."""
