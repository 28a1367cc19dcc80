"""trbert-deploy: makes a BERT-type encoder several times faster by dropping tokens on the way."""

from trbert_deploy.errors import TrbertError
from trbert_deploy.runtime.drop_in.registry import pipeline
from trbert_deploy.runtime.loading import load
from trbert_deploy.runtime.pipeline import Pipeline
from trbert_deploy.tasks.predictions import KeptTokens, Prediction
from trbert_deploy.version import __version__

__all__ = [
    "KeptTokens",
    "Pipeline",
    "Prediction",
    "TrbertError",
    "__version__",
    "load",
    "pipeline",
]
