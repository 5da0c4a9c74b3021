"""The onnxruntime backend: runs any graph; what the others are compared with."""
