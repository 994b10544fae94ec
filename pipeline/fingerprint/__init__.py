"""Near-duplicates: codes of sound and picture, an index that finds those that agree, and groups made of them.

Re-uploads, trims, other bit rates, crops, logos, mirror images and shifts of pitch or speed by a few percent are found
again; see `data_cards/curation.md` for how well. Nothing here loads a model.
"""

from pipeline.fingerprint.catalogue import KINDS, Catalogue, Shared, forget
from pipeline.fingerprint.codes import Codes, PictureCodes, SoundCodes
from pipeline.fingerprint.groups import GroupIds, Groups, Leakage, Pair, leakage
from pipeline.fingerprint.match import Match

__all__ = [
    "KINDS",
    "Catalogue",
    "Codes",
    "GroupIds",
    "Groups",
    "Leakage",
    "Match",
    "Pair",
    "PictureCodes",
    "Shared",
    "SoundCodes",
    "forget",
    "leakage",
]
