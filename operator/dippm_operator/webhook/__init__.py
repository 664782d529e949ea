"""The admission webhook: sizes labelled pods by stored predictions, validates InferenceJobs; imports no torch."""
