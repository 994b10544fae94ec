"""The page on which a person judges clips: a small server on this machine alone."""
