"""Training and test data: rendered scenes, data sets on disk, blur by eq. 1, batches."""
