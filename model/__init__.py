"""VidMusician: the model, its data loader, trainer and decoding."""
