"""The environment in which the Hugging Face libraries look for nothing on the network."""

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
"""Unless the environment says otherwise. The libraries read it at their import."""
