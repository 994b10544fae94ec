"""The bundled small backbone, and the scripts that train and study at toy width."""
