"""What a user would serve without this toolkit: transformers behind FastAPI.

    python benchmarks/transformers_server.py CHECKPOINT --port 8090 --threads 1

``POST /predict`` takes and gives what the service of this toolkit does for one text. Requests run
one after the other, as they come: such a service has no queue that makes batches.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import click
import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline


class Request(BaseModel):
    """A text."""

    inputs: str


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--port", required=True, type=int)
@click.option("--threads", default=1, show_default=True)
def main(checkpoint: Path, port: int, threads: int) -> None:
    """Serve CHECKPOINT."""
    torch.set_num_threads(threads)
    classify = pipeline("text-classification", model=str(checkpoint), top_k=None, device="cpu")
    turn = threading.Lock()
    app = FastAPI()

    @app.post("/predict")
    def predict(body: Request) -> Any:
        with turn:
            return classify([body.inputs], truncation=True)[0]

    @app.get("/health")
    def health() -> None:
        pass

    uvicorn.run(app, port=port, log_level="warning")


if __name__ == "__main__":
    main()
