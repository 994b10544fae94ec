"""The data stages of dvmset: plain typed functions and classes from a source list to a released data set.

Importing this package loads nothing heavy; each room imports the library it stands on when it is used.
"""

__version__ = "0.1.0"
DEFAULT_PROFILE = "dvmset"  # of every command and flow
