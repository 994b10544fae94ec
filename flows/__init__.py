"""Prefect flows over pipeline/ and model/, and the command line."""
