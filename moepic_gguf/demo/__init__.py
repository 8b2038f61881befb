"""A real small Mixture-of-Experts to chat with on any machine: SmolLM2-135M-Instruct, upcycled. See ``build.py`` for what that means."""

from .build import DEMO_NAME, demo_path, ensure_demo_model

__all__ = ["DEMO_NAME", "demo_path", "ensure_demo_model"]
