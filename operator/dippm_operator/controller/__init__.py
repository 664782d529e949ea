"""The operator: watches InferenceJobs, predicts, writes the status, makes Jobs. One is active, under a Lease."""
