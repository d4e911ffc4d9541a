"""From a config to a finished run: identity, training, evaluation, prediction, sweeps."""
