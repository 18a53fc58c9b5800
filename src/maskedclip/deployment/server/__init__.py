"""The model behind a page and an HTTP interface: FastAPI, one worker thread, uploads with limits."""
