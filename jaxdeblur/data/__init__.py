"""Training and test data: rendered scenes, data sets on disk, synthesis of blur, the pipeline."""
