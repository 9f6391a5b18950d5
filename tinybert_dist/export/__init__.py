"""A trained classifier as files that other runtimes serve: ONNX, and its 8-bit version."""
