"""hydroflow: discovery of superconducting hydrides by active learning of a Large Atomic Model."""

__version__ = "0.1.0"
