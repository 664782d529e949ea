"""The DIPPM operator: sizes InferenceJobs with MIG profiles."""
