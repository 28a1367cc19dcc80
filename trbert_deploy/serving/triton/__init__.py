"""Models in NVIDIA's Triton Inference Server: a repository for it, and what runs inside of it."""
