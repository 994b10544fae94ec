"""Truth sets, made by command from package media, and what the rooms make of them.

`python -m tests.truth.shots`, `... .sync`, `... .duplicates`, ... print what they measure and write it into
`data_cards/curation.md`.
"""
