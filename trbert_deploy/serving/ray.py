"""The service as an application of Ray Serve: replicas that each hold the model and its queue.

serve run trbert_deploy.serving.ray:application bundle=/models/bundle max_replicas=4
"""

# Ray Serve looks at what ``application`` takes: annotations may not be left as text.
from pathlib import Path

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application

from trbert_deploy.bundle.bundle import Bundle
from trbert_deploy.errors import ConfigError
from trbert_deploy.runtime.backends.registry import DEFAULT_BACKEND
from trbert_deploy.runtime.chain import MAX_BATCH_TOKENS
from trbert_deploy.runtime.loading import load
from trbert_deploy.serving.app import create_app
from trbert_deploy.serving.served import Limits, ServedModel, ServedModels


class Arguments(BaseModel):
    """What the application is told.

    Attributes:
        bundle: a directory that all machines see.
        threads: of a replica, which are its share of the cluster's processors.
        min_replicas, max_replicas: between which Ray Serve scales.
        target_ongoing_requests: of a replica, that scaling aims at.
        max_ongoing_requests: that a replica is given at a time: its queue makes batches of them.
        api_key: that requests must bring; None where they need none.
    """

    model_config = ConfigDict(extra="forbid")

    bundle: str
    backend: str = DEFAULT_BACKEND
    threads: int = Field(1, ge=1)
    max_batch_tokens: int = Field(MAX_BATCH_TOKENS, ge=1)
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    target_ongoing_requests: float = Field(16, gt=0)
    max_ongoing_requests: int = Field(256, ge=1)
    api_key: str | None = None


def application(args: Arguments) -> Application:
    """Replicas that answer as ``trbert-deploy serve`` does; each is ready once it has the model.

    Raises:
        ConfigError: there are to be more replicas at least than at most.
        StorageError, BundleError: there is no such bundle, or it is damaged.
    """
    if args.min_replicas > args.max_replicas:
        raise ConfigError(
            f"min_replicas is {args.min_replicas}: expected at most max_replicas, which is "
            f"{args.max_replicas}"
        )
    Bundle.open(Path(args.bundle))  # before replicas try it again and again

    def build() -> FastAPI:
        pipeline = load(
            args.bundle,
            args.backend,
            threads=args.threads,
            max_batch_tokens=args.max_batch_tokens,
        )
        return create_app(ServedModels([ServedModel(pipeline, Limits())]), args.api_key)

    deployment = serve.deployment(
        serve.ingress(build)(),
        name="trbert-deploy",
        max_ongoing_requests=args.max_ongoing_requests,
        ray_actor_options={"num_cpus": args.threads},
        autoscaling_config={
            "min_replicas": args.min_replicas,
            "initial_replicas": args.min_replicas,
            "max_replicas": args.max_replicas,
            "target_ongoing_requests": args.target_ongoing_requests,
        },
    )
    return deployment.bind()
