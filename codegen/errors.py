"""What the kernel generator raises."""


class NotLowerable(Exception):
    """A group can't become one kernel; the message says which node and why."""


class InvalidKernel(Exception):
    """A kernel breaks a rule of the loop IR; the message says which statement and rule."""
