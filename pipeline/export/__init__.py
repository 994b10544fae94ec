"""A release, or a part of it, for others: in the files of their loaders, or on the Hugging Face Hub."""

from pipeline.export.choice import Choice, OptOuts, read_opt_outs
from pipeline.export.hub import Pushed, push
from pipeline.export.write import Format, export

__all__ = ["Choice", "Format", "OptOuts", "Pushed", "export", "push", "read_opt_outs"]
