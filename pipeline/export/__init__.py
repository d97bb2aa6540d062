"""The trained models for other runtimes: ONNX graphs, the check of their answers, and the model card."""
