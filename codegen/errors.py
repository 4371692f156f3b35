"""What the kernel generator raises."""


class NotLowerable(Exception):  # noqa: N818 - it is an answer ("no, because"), and its text is shown in reports
    """A group can't become one kernel; the message says which node and why."""


class InvalidKernel(Exception):  # noqa: N818
    """A kernel breaks a rule of the loop IR; the message says which statement and rule."""
