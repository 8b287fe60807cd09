"""The HTTP server: many classifiers, one backbone in memory.

FastAPI and uvicorn handle the protocol, routing and graceful shutdown. A `PromptBank` classifies
in one thread, which takes all waiting requests, for any tasks, as its next batch.
"""
