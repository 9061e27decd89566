"""Files on disk: readers of benchmark formats, pictures, the feature store and the embedded miniworld."""
