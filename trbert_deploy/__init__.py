"""trbert-deploy: makes a BERT-type encoder several times faster by dropping tokens on the way."""

from trbert_deploy.errors import TrbertError
from trbert_deploy.runtime.pipeline import KeptTokens, Pipeline, Prediction, load
from trbert_deploy.version import __version__

__all__ = ["KeptTokens", "Pipeline", "Prediction", "TrbertError", "__version__", "load"]
