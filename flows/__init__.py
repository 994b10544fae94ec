"""Prefect flows over pipeline/ and model/, and the command line."""

import os

# submitit, which audiocraft imports, sets up logging anew while it is imported, and then holds logging's lock and wants
# one of Prefect's. The thread of Prefect's heartbeat may hold that and want logging's: the build would hang for ever.
os.environ.setdefault("SUBMITIT_LOG_LEVEL", "NOCONFIG")
