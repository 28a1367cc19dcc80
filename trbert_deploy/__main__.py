"""``python -m trbert_deploy``: the command line."""

from trbert_deploy.cli import main

main()
