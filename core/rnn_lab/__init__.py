"""rnn-lab: layers, parameter counting, data, training and comparison of recurrent language models.

Importing this package costs nothing: torch is imported by the modules that compute, never by discovery.
"""

__version__ = "0.1.0"
