"""Predicting many photos: streamed, in parallel, resumed where it stopped. Needs a model; see docs/prediction.md."""
