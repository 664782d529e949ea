"""The network: PMGNS with its featurizer, its tables and its bundle."""
