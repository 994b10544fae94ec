"""A person's say: what people's words come to, which windows they are asked about, how far they and the rules agree."""

from pipeline.review.ruling import NOBODY, Ruling, ruling_of

__all__ = ["NOBODY", "Ruling", "ruling_of"]
