"""The end of a run that cannot go on; in a file that loads nothing, for the command line."""


class TrainingStopped(RuntimeError):
    """A run that cannot go on; its newest checkpoint is from before the trouble."""
